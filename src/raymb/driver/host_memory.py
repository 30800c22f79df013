"""Memory of a machine that work beside the training takes, for Ray: it places tasks by what they ask for; and what
this machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from raymb.checkpoints.remote import RemoteCheckpoints, manifest_of
from raymb.rank.accelerator import precision_of
from raymb.run.job import Job

_LIBRARIES = 1 << 30
"""Of a process that has imported torch and what it needs."""
_SPARE = 1.2
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit stands: version 2 and 1 of Linux' control groups."""


def memory_of_this_machine(limits: Sequence[str] = _LIMITS) -> int:
    """Bytes, or as many as the container may have."""
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [Path(file).read_text(encoding="ascii").strip() for file in limits if Path(file).is_file()]
    return min([here, *(int(text) for text in found if text.isdigit())])


def memory_of_finishing(job: Job) -> int:
    """Of merging, verifying or exporting in one process, which loads the whole model, for one after the other."""
    return _with_libraries(job.plan.parameters * _bytes_of_a_weight(job))


def memory_of_an_exporting_worker(job: Job) -> int:
    """Its part of the weights, and of them the tensors of a file that is being written."""
    return _with_libraries(2 * job.plan.parameters * _bytes_of_a_weight(job) / job.layout.model_parallel_size)


def memory_of_a_resharding_worker(job: Job, directory: Path) -> int:
    """Megatron-Core's format for any layout gathers the whole state of the optimizer on every rank.

    Args:
        directory: the checkpoint.
    """
    files = (manifest_of(directory, RemoteCheckpoints.of(job)) or {"files": {}})["files"]
    own = 4 * job.plan.parameters / job.layout.model_parallel_size
    return _with_libraries(sum(entry["bytes"] for entry in files.values()) + own)


def _bytes_of_a_weight(job: Job) -> int:
    return 4 if precision_of(job) == "fp32" else 2


def _with_libraries(size: float) -> int:
    return int(_SPARE * size) + _LIBRARIES

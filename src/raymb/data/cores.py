"""How many CPUs this process may use, and how many processes it may start: by its CPU affinity, and by the CPU and
memory of its control groups."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_MEMORY_OF_A_PROCESS = 1 << 30
_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60  # version 1 writes a number near 2**63


def usable_cpus(groups: Path = _GROUPS, own: Path = _OWN) -> float:
    """A container's limits are control groups' (versions 1 and 2), which the affinity does not show.

    Args:
        groups: where control groups are mounted.
        own: the file that names this process's groups.
    """
    return min([float(len(os.sched_getaffinity(0))), *map(_cpus, _places(groups, own))])


def usable_cores(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Processes for each of which there are a CPU and memory; at least 1."""
    cores = usable_cpus(groups, own)
    for place in _places(groups, own):
        cores = min(cores, _number(place, "memory.max") / _MEMORY_OF_A_PROCESS)
        cores = min(cores, _number(place, "memory.limit_in_bytes") / _MEMORY_OF_A_PROCESS)
    return max(1, math.floor(cores + 0.5))


def _places(groups: Path, own: Path) -> Iterator[Path]:
    """Directories of this process's groups and of those around them."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and not {"cpu", "memory"} & set(controllers.split(",")):
            continue
        home = groups / controllers if controllers else groups
        place = home / path.strip("/")
        yield from (one for one in (place, *place.parents) if one == home or home in one.parents)


def _cpus(place: Path) -> float:
    words = _words(place, "cpu.max") or [
        *_words(place, "cpu.cfs_quota_us"),
        *_words(place, "cpu.cfs_period_us"),
    ]
    if len(words) != 2 or not words[0].isdigit():  # max, or -1
        return math.inf
    return int(words[0]) / int(words[1])


def _number(place: Path, name: str) -> float:
    words = _words(place, name)
    return int(words[0]) if words and words[0].isdigit() and int(words[0]) < _NO_LIMIT else math.inf


def _words(place: Path, name: str) -> list[str]:
    try:
        return (place / name).read_text(encoding="utf-8").split()
    except OSError:
        return []

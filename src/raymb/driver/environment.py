"""Which environment variables the processes of a run get, and on which way: what is harmless in Ray's runtime
environment, with which a process begins; the rest in an object that it unpickles (raymb.runtime.carried)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raymb.credentials import harmless, secret
from raymb.rank.accelerator import precision_of
from raymb.run.job import Job
from raymb.spec import RunSpec

_PASSED_ON = (
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "MEGATRON_",
    "PYTHONUNBUFFERED",
    "HF_",
    "HUGGING_FACE_",
    "NCCL_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "TRITON_",
    "NVTE_",
    "WANDB_",
    "AWS_",
    "AZURE_",
    "FSSPEC_",
    "GOOGLE_",
    "RAYMB_",
)
"""How the names begin that a run's processes get as the driver has them."""
_ENDPOINT = "_ENDPOINT"


def given_variables(given: Mapping[str, str]) -> dict[str, str]:
    """The driver's own settings of libraries, stores and hubs, and its tokens; then --env.

    Args:
        given: --env.
    """
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if value and (name.startswith(_PASSED_ON) or _ENDPOINT in name)
    }
    return {**passed_on, **given}


def worker_environment(job: Job) -> dict[str, str]:
    """Variables that worker processes begin with: the defaults that training wants, then those of given_variables that
    may be seen by others."""
    defaults = {
        "OMP_NUM_THREADS": str(job.threads),
        # Megatron's overlap of communication with matrix products relies on 1; Megatron-FSDP, on more.
        "CUDA_DEVICE_MAX_CONNECTIONS": "8" if job.spec.parallel.fsdp else "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Else Transformer Engine and Triton's kernels multiply fp32 numbers as TF32, with 10 bits of their 23.
        **({"NVIDIA_TF32_OVERRIDE": "0", "TRITON_F32_DEFAULT": "ieee"} if precision_of(job) == "fp32" else {}),
        **({"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if job.spec.performance.expandable_segments else {}),
        # Else NCCL registers buffers of a graph that expandable segments move: Megatron-Core asserts it.
        **({"NCCL_GRAPH_REGISTER": "0"} if job.cuda_graphs else {}),
        **_compile_cache(job),
    }
    return {**defaults, **harmless(given_variables(job.spec.cluster.env))}


def _compile_cache(job: Job) -> dict[str, str]:
    """A first step that finds its kernels compiled saves 40 s. Every node sees the storage path."""
    if not job.spec.performance.compile_cache or job.backend == "cpu":
        return {}
    home = Path(job.run_dir).parent / "_compiled"
    return {"TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"), "TRITON_CACHE_DIR": str(home / "triton")}


@contextmanager
def without_secrets_of(spec: RunSpec) -> Iterator[None]:
    """For the start of a Ray of the run's own, whose processes would inherit this one's environment."""
    own = {name: os.environ[name] for name in secret(given_variables(spec.cluster.env)) if name in os.environ}
    for name in own:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(own)

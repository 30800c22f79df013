"""What a process does in its first moments when it is forked from one with another environment (ranks.py,
ray_workers.py), and what that has imported."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

OF_SERVERS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment of a process that forks, and is to have one thread: numpy and pyarrow have more."""


def import_megatron() -> None:
    """What all ranks on CPUs import, in their order."""
    from raymb.bridge.patches import imports
    from raymb.rank.accelerator import ACCELERATORS

    imports.install()
    ACCELERATORS["cpu"].activate()
    imports.load_family("Qwen2ForCausalLM")
    for name in ("activation", "callbacks", "config", "export_adapter", "saving"):
        importlib.import_module(f"raymb.bridge.{name}")
    importlib.import_module("megatron.bridge.training.pretrain")
    # A process group asks the compiler, which is left out here, to forget things. A worker has its group before that.
    importlib.import_module("torch._dynamo").trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)


def begin(environment: dict[str, str]) -> None:
    """As Python, and torch when it is imported: with PYTHONPATH, a sitecustomize there, and OMP_NUM_THREADS."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    own = [os.path.abspath(one) for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*own, *(one for one in sys.path if one not in own)]
    if any(Path(one, "sitecustomize.py").exists() for one in own):
        sys.modules.pop("sitecustomize", None)
        import sitecustomize  # noqa: F401
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))

"""Runs that the tests of GPUs compare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.smoke.conftest import FAULTS, read_metrics, words_of

STEPS = 20
FLAGS: dict[str, Any] = {
    "num_workers": 1,
    "seq_length": 64,
    "global_batch_size": 16,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
    "train_iters": STEPS,
    "ray_address": "local",
    "save_interval": 0,
    "eval_interval": 0,
    "export_hf": False,
    "cuda_graphs": False,  # tiny models round otherwise with them: tests/gpu/test_cuda_graphs.py
}
ON_A_CPU: dict[str, Any] = {"backend": "cpu", "num_workers": 1}
EXACT = {"precision": "fp32"}


def train(place: Path, name: str, *overrides: str, **flags: Any) -> Path:
    """The directory of a finished run in `place`, on GPUs unless the flags say otherwise."""
    from raymb.cli import main

    name = name.replace(" ", "-")
    given = {**FLAGS, "backend": "cuda", "storage_path": place, "experiment_name": name, **flags}
    assert main(["finetune", *overrides, *words_of(given)]) == 0
    return place / name


def with_faults(file: Path) -> list[str]:
    """The --env of workers in which the faults of a file happen (tests/faults)."""
    return [f"PYTHONPATH={FAULTS}{os.pathsep}src{os.pathsep}{os.environ.get('PYTHONPATH', '')}", f"RAYMB_FAULTS={file}"]


def deviations(run: Path, other: Path, steps: int | None = None) -> dict[str, float]:
    """The largest relative difference of a loss and of a gradient norm, in any step or in the first ones."""
    both = list(zip(read_metrics(run), read_metrics(other), strict=True))[:steps]
    worst = {name: max(abs(one[name] / two[name] - 1) for one, two in both) for name in ("loss", "grad_norm")}
    (first, same), (last, _) = both[0], both[-1]
    print(
        f"\nDEVIATION {run.name} of {other.name}: loss {first['loss']:.4f} to {last['loss']:.4f}, {worst['loss']:.1e}, "
        f"norm {worst['grad_norm']:.1e}; of the first step {abs(first['grad_norm'] / same['grad_norm'] - 1):.1e}"
    )
    return worst


def needs(gpus: int) -> None:
    import torch

    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} GPUs, here are {torch.cuda.device_count()}")

"""GPUs' layouts and families against one CPU worker in fp32: the same model, rows and steps. On as many GPUs as there
are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.families import FAMILIES, MOE_FAMILIES, make_model
from tests.models import write_rows
from tests.smoke.conftest import read_metrics, words_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
STEPS = 20
FLAGS: dict[str, Any] = {
    "seq_length": 64,
    "global_batch_size": 16,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
    "train_iters": STEPS,
    "ray_address": "local",
    "save_interval": 0,
    "eval_interval": 0,
}
TP, PP, CP, EP = (f"--{name}_parallel_size" for name in ("tensor", "pipeline", "context", "expert"))
FSDP = "--megatron_fsdp"
LAYOUTS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    **{f"one-{family}": (family, 1, ()) for family in FAMILIES},
    "tp2": ("Qwen2", 2, (TP, "2")),
    "pp2": ("Qwen2", 2, (PP, "2")),
    "cp2": ("Qwen2", 2, (CP, "2")),
    "dp2": ("Qwen2", 2, (TP, "1", PP, "1", CP, "1")),
    **{f"fsdp2-{shared}": ("Qwen2", 2, (FSDP, shared)) for shared in ("optim", "optim_grads", "optim_grads_params")},
    "tp2-pp2": ("Qwen2", 4, (TP, "2", PP, "2")),
    "ep2": ("Qwen3-MoE", 2, (EP, "2")),
    "ep2-fsdp2": ("Qwen3-MoE", 2, (EP, "2", FSDP, "optim_grads_params")),
}
WORST, WORST_OF_MOE = 3e-3, 2e-2
"""Relative, of any step's loss: bf16's rounding; a token at the edge between two experts may go to the other one."""


@pytest.fixture(scope="module")
def on_a_cpu() -> dict[str, list[float]]:
    """Losses by family."""
    return {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_computes_what_a_cpu_does(
    layout: str, tmp_path_factory: pytest.TempPathFactory, on_a_cpu: dict[str, list[float]]
) -> None:
    import torch

    family, workers, flags = LAYOUTS[layout]
    if torch.cuda.device_count() < workers:
        pytest.skip(f"needs {workers} GPUs, here are {torch.cuda.device_count()}")
    place = tmp_path_factory.getbasetemp() / "layouts"
    rows, model = place / "rows", place / family
    if not rows.exists():
        write_rows(rows, train=STEPS * FLAGS["global_batch_size"])
    if family not in on_a_cpu:
        make_model(family, model)
        on_a_cpu[family] = _losses(place, f"{family}-cpu", model, rows, "--backend", "cpu", "--num_workers", "1")
    losses = _losses(place, layout, model, rows, "--backend", "cuda", "--num_workers", str(workers), *flags)
    worst = max(abs(one / other - 1) for one, other in zip(losses, on_a_cpu[family], strict=True))
    print(f"\n{layout}: {losses[0]:.4f} to {losses[-1]:.4f}, worst relative deviation {worst:.1e}")
    assert worst < (WORST_OF_MOE if family in MOE_FAMILIES else WORST) and losses[-1] < losses[0]


def _losses(place: Path, name: str, model: Path, rows: Path, *more: str) -> list[float]:
    from raymb.cli import main

    given = {**FLAGS, "hf_model_path": model, "dataset": rows, "storage_path": place, "experiment_name": name}
    words = words_of(given)
    assert main(["finetune", *words, *more, "--no_export_hf"]) == 0
    return [record["loss"] for record in read_metrics(place / name)]

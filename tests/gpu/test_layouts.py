"""GPUs' layouts against one CPU worker in fp32: the same model, rows and steps. On as many GPUs as there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.families import MOE_FAMILIES, make_model
from tests.gpu.runs import FLAGS, ON_A_CPU, STEPS, deviations, needs, train
from tests.models import write_rows

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
LAYOUTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "tp2": ("Qwen2", 2, {"tensor_parallel_size": 2}),
    "pp2": ("Qwen2", 2, {"pipeline_parallel_size": 2}),
    "cp2": ("Qwen2", 2, {"context_parallel_size": 2}),
    "dp2": ("Qwen2", 2, {f"{name}_parallel_size": 1 for name in ("tensor", "pipeline", "context")}),
    **{
        f"fsdp2-{shared}": ("Qwen2", 2, {"megatron_fsdp": shared})
        for shared in ("optim", "optim_grads", "optim_grads_params")
    },
    "tp2-pp2": ("Qwen2", 4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
    "ep2": ("Qwen3-MoE", 2, {"expert_parallel_size": 2}),
    "ep2-fsdp2": ("Qwen3-MoE", 2, {"expert_parallel_size": 2, "megatron_fsdp": "optim_grads_params"}),
}
WORST = {False: (3e-3, 5e-2), True: (2e-2, 2e-1)}
"""Relative, of any step's loss and gradient norm, by whether it is a MoE model: bf16's rounding; a token at the edge
between two experts may go to the other one."""


@pytest.fixture(scope="module")
def on_a_cpu() -> dict[str, Path]:
    """Runs by family."""
    return {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_computes_what_a_cpu_does(
    layout: str, tmp_path_factory: pytest.TempPathFactory, on_a_cpu: dict[str, Path]
) -> None:
    family, workers, sizes = LAYOUTS[layout]
    needs(workers)
    place = tmp_path_factory.getbasetemp() / "layouts"
    rows, model = place / "rows", place / family
    if not rows.exists():
        write_rows(rows, train=STEPS * FLAGS["global_batch_size"])
    given = {"hf_model_path": model, "dataset": rows}
    if family not in on_a_cpu:
        make_model(family, model)
        on_a_cpu[family] = train(place, f"{family}-cpu", **given, **ON_A_CPU)
    worst = deviations(train(place, layout, **given, num_workers=workers, **sizes), on_a_cpu[family])
    loss, norm = WORST[family in MOE_FAMILIES]
    assert worst["loss"] < loss and worst["grad_norm"] < norm

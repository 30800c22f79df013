"""Packed rows and LoRA in parallel layouts, against Hugging Face and PEFT models in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models import write_rows
from tests.smoke.conftest import MAIN_FLAGS, batches_of, make_job, torchrun, worst_deviation

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]
PROGRAM = Path(__file__).with_name("train_variant.py")
TP, PP, CP = (f"{name}_parallel_size" for name in ("tensor", "pipeline", "context"))


def _train(variant: str, tmp_path: Path, model: Path, rows: Path, workers: int, **flags: Any) -> list[dict[str, Any]]:
    job = make_job(tmp_path, hf_model_path=model, dataset=rows, num_workers=workers, **flags)
    torchrun(workers, PROGRAM, job, variant, tmp_path)
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert len(steps) == flags.get("train_iters", MAIN_FLAGS["train_iters"])
    return steps


@pytest.mark.parametrize(
    ("workers", "layout"),
    [
        pytest.param(1, {}, id="one", marks=pytest.mark.slow),
        pytest.param(4, {PP: 4}, id="pp4", marks=pytest.mark.slow),
        pytest.param(2, {TP: 2}, id="tp2", marks=pytest.mark.slow),
        pytest.param(2, {CP: 2}, id="cp2"),
        pytest.param(4, {TP: 2, CP: 2}, id="tp2-cp2", marks=pytest.mark.slow),
    ],
)
def test_packed_rows_train_as_if_alone(workers: int, layout: dict[str, int], tmp_path: Path, tiny_qwen2: Path) -> None:
    """The oracle has never seen a pack: it runs every row by itself."""
    from tests.smoke import oracle

    rows = write_rows(tmp_path / "rows", train=240)
    steps = _train("plain", tmp_path, tiny_qwen2, rows, workers, global_batch_size=3, packing=True, **layout)
    batches = batches_of(tmp_path / "run")
    assert max(len(batch) for batch in batches) > 9
    expected = oracle.train(tiny_qwen2, batches, MAIN_FLAGS["learning_rate"])
    worst = worst_deviation(steps, expected)
    print(f"\npacked {layout}: loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}, worst deviation {worst:.2e}")
    assert worst <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "layout"),
    [(1, {}), (2, {TP: 2}), (4, {TP: 2, PP: 2})],
    ids=["one", "tp2", "tp2-pp2"],
)
def test_lora_trains_as_peft_does(
    workers: int, layout: dict[str, int], tmp_path: Path, tiny_qwen2: Path, rows: Path
) -> None:
    """From the adapter that the run started with, exported for PEFT. TP 2 has sequence parallel."""
    from tests.smoke import oracle

    steps = _train("lora", tmp_path, tiny_qwen2, rows, workers, **layout)
    batches = batches_of(tmp_path / "run")
    expected = oracle.train(tiny_qwen2, batches, MAIN_FLAGS["learning_rate"], adapter=tmp_path / "adapter")
    worst = worst_deviation(steps, expected)
    print(f"\nLoRA {layout}: loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}, worst deviation {worst:.2e}")
    assert worst <= 1e-5

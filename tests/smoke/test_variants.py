"""Packed rows in parallel layouts, against a Hugging Face model in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import FAMILIES, MOE_FAMILIES, make_model
from tests.models import write_rows
from tests.smoke.conftest import MAIN_FLAGS, batches_of, train_variant, worst_deviation
from tests.smoke.test_families import overrides_of

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]
TP, PP, VPP, CP = (f"{name}_parallel_size" for name in ("tensor", "pipeline", "virtual_pipeline", "context"))
MICRO = "micro_batch_size"


@pytest.mark.parametrize(
    ("workers", "layout"),
    [
        pytest.param(1, {}, id="one", marks=pytest.mark.slow),
        pytest.param(4, {PP: 4}, id="pp4", marks=pytest.mark.slow),
        pytest.param(2, {TP: 2}, id="tp2", marks=pytest.mark.slow),
        pytest.param(2, {CP: 2, MICRO: 3}, id="cp2-three rows"),
        pytest.param(2, {PP: 2, MICRO: 2}, id="pp2-two rows", marks=pytest.mark.slow),
        pytest.param(4, {PP: 2, VPP: 2, TP: 2, MICRO: 3}, id="vpp2-tp2-three rows", marks=pytest.mark.slow),
        pytest.param(4, {TP: 2, CP: 2, MICRO: 3}, id="tp2-cp2-three rows", marks=pytest.mark.slow),
    ],
)
def test_packed_rows_train_as_if_alone(workers: int, layout: dict[str, int], tmp_path: Path, tiny_qwen2: Path) -> None:
    """The oracle has never seen a pack: it runs every sample by itself."""
    from tests.smoke import oracle

    rows = write_rows(tmp_path / "rows", train=600)
    flags = {"hf_model_path": tiny_qwen2, "dataset": rows, "global_batch_size": 6, "packing": True, **layout}
    steps = train_variant(tmp_path, workers, **flags)
    batches = batches_of(tmp_path / "run")
    assert max(len(batch) for batch in batches) > 9
    expected = oracle.train(tiny_qwen2, batches, MAIN_FLAGS["learning_rate"])
    worst = worst_deviation(steps, expected)
    print(f"\npacked {layout}: loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}, worst deviation {worst:.2e}")
    assert worst <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout"),
    [
        pytest.param("DeepSeek-V2", {}, id="latent attention"),
        pytest.param("Mistral", {}, id="windows"),
        pytest.param("Mistral", {CP: 2}, id="windows-cp2"),
        pytest.param("GPT-OSS", {}, id="sinks and windows"),
        pytest.param("Gemma 3", {}, id="frequencies of two kinds"),
        *((family, {CP: 2}) for family in ("Gemma", "EXAONE 4", "ERNIE 4.5", "MiniMax-M2", "Hy3", "K-EXAONE")),
    ],
)
def test_packed_rows_of_other_attention(family: str, layout: dict[str, int], tmp_path: Path) -> None:
    """Samples of more tokens than a window of 4."""
    from tests.smoke import oracle

    window = {"sliding_window": 4} if "sliding_window" in FAMILIES[family][1] else {}
    model, rows = make_model(family, tmp_path / "model", **window), write_rows(tmp_path / "rows", train=240)
    flags = {"hf_model_path": model, "dataset": rows, "global_batch_size": 3, "packing": True, "train_iters": 3}
    balancing = {"moe_aux_loss_coeff": 0} if family in MOE_FAMILIES else {}
    steps = train_variant(tmp_path, layout.get(CP, 1), *overrides_of(family), **flags, **balancing, **layout)
    batches = batches_of(tmp_path / "run")
    assert max(len(batch) for batch in batches) > 6
    assert sum(len(ids) > 8 for batch in batches for ids, _ in batch) > 9
    worst = worst_deviation(steps, oracle.train(model, batches, MAIN_FLAGS["learning_rate"]))
    print(f"\n{family}, packed {layout}: worst deviation {worst:.2e}")
    assert worst <= (1e-4 if family in MOE_FAMILIES else 1e-5)

"""Every parallel layout computes the numbers of an independent oracle, a plain Hugging Face model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.families import make_model
from tests.smoke.conftest import MAIN_FLAGS, batches_of, read_metrics, train_variant, worst_deviation

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]
DENSE, MOE, ODD = "Qwen2", "Qwen3-MoE", "Qwen2 with 305 tokens"


class Case(NamedTuple):
    workers: int
    flags: dict[str, Any]
    model: str = DENSE
    slow: bool = False
    tolerance: float = 1e-5


CASES = {
    "tp1": Case(1, {}, slow=True),
    "tp2-without-sequence-parallel": Case(2, {"tensor_parallel_size": 2, "sequence_parallel": "false"}, slow=True),
    "tp2": Case(2, {"tensor_parallel_size": 2}, slow=True),  # sequence parallel is auto's choice
    "tp2-odd-vocabulary": Case(2, {"tensor_parallel_size": 2}, ODD, slow=True),  # padded to 306
    "pp2": Case(2, {"pipeline_parallel_size": 2}, slow=True),
    "dp2": Case(2, {}, slow=True),
    "tp2-pp2": Case(4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
    "tp2-pp2-dp2": Case(8, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, slow=True),
    "pp2-vpp2": Case(2, {"pipeline_parallel_size": 2, "virtual_pipeline_parallel_size": 2}, slow=True),
    "cp2": Case(2, {"context_parallel_size": 2}),
    "cp2-tp2": Case(4, {"context_parallel_size": 2, "tensor_parallel_size": 2}, slow=True),
    "recompute-full": Case(1, {"recompute": "full"}, slow=True),
    "recompute-selective": Case(2, {"tensor_parallel_size": 2, "recompute": "selective"}, slow=True),
    "ep2": Case(2, {"expert_parallel_size": 2}, MOE, tolerance=1e-4),
    "ep2-tp2": Case(4, {"expert_parallel_size": 2, "tensor_parallel_size": 2}, MOE, slow=True, tolerance=1e-4),
    "ep2-tp2-etp1": Case(
        4,
        {"expert_parallel_size": 2, "tensor_parallel_size": 2, "expert_tensor_parallel_size": 1},
        MOE,
        slow=True,
        tolerance=1e-4,
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2: Path) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    odd = make_model("Qwen2", place / "odd-vocabulary", vocab_size=305)
    return {DENSE: tiny_qwen2, MOE: make_model(MOE, place / "tiny-qwen3-moe"), ODD: odd}


@pytest.fixture(scope="module")
def oracle_steps() -> dict[str, list[dict[str, Any]]]:
    return {}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[pytest.mark.slow] if case.slow else []) for name, case in CASES.items()],
)
def test_layout_agrees_with_hugging_face(
    case: Case,
    models: dict[str, Path],
    rows: Path,
    tmp_path: Path,
    oracle_steps: dict[str, list[dict[str, Any]]],
) -> None:
    from tests.smoke import oracle

    # Megatron adds a load-balancing loss to the gradients of a MoE model, transformers does not.
    balancing = {"moe_aux_loss_coeff": 0} if case.model == MOE else {}
    flags = {"hf_model_path": models[case.model], "dataset": rows, **balancing, **case.flags}
    metrics = train_variant(tmp_path, case.workers, **flags)
    if case.model not in oracle_steps:
        batches = batches_of(tmp_path / "run")
        oracle_steps[case.model] = oracle.train(models[case.model], batches, MAIN_FLAGS["learning_rate"])
    assert [record["step"] for record in metrics] == list(range(1, 11))
    worst = worst_deviation(metrics, oracle_steps[case.model])
    print(f"\nloss {metrics[0]['loss']:.6f} -> {metrics[-1]['loss']:.6f}, worst deviation {worst:.2e}")
    assert worst <= case.tolerance


@pytest.mark.slow
def test_bf16_stays_within_its_error_of_fp32(finetune: Callable[..., Path], tmp_path: Path) -> None:
    runs = {
        precision: read_metrics(
            finetune(num_workers=2, tensor_parallel_size=2, precision=precision, experiment_name=precision)
        )
        for precision in ("fp32", "bf16")
    }
    deviations = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(runs["bf16"], runs["fp32"], strict=True)]
    print(f"\nbf16 against fp32: worst relative deviation of the loss {max(deviations):.2e}")
    assert 0 < max(deviations) < 2**-8, "bf16 has 8 bits of mantissa"

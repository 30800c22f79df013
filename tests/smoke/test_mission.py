"""The mission's command on a local model, with eight CPU workers, through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from raymb.checkpoints.manifest import latest_step
from raymb.model.tensor_files import tensor_shapes
from tests.models import make_tiny_qwen2
from tests.smoke import oracle
from tests.smoke.conftest import MAIN_FLAGS, batches_of, read_metrics, samples_of, worst_deviation

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]


def test_mission_command_with_eight_workers(finetune: Callable[..., Path], rows: Path, tmp_path: Path) -> None:
    model = make_tiny_qwen2(tmp_path / "odd-vocabulary", vocabulary=305)  # padded to 306 for TP 2, trimmed in hf/
    run = finetune(
        hf_model_path=model,
        num_workers=8,
        tensor_parallel_size=2,
        pipeline_parallel_size=2,
        train_iters=6,
        seq_length=128,
        save_interval=4,
        eval_interval=3,
        max_validation_samples=8,
        output_dir=tmp_path / "elsewhere",
    )
    metrics = read_metrics(run)
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    for record in metrics:
        assert record["tokens"] == 8 * 128 and 0 < record["trained_tokens"] < record["tokens"]
        assert record["samples"] == 8
        assert record["tokens_per_second"] == pytest.approx(record["tokens"] / record["step_seconds"])
    assert [record["step"] for record in read_metrics(run, "validation")] == [3, 6]
    assert latest_step(tmp_path / "elsewhere") == 6
    assert {path.name for path in (tmp_path / "elsewhere").glob("iter_*")} == {"iter_0000004", "iter_0000006"}
    assert tensor_shapes(run / "hf") == tensor_shapes(model)
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["data_parallel_size"], plan["padded_vocab_size"]) == (2, 306)
    assert len(list((run / "logs").glob("worker-*.log"))) == 8
    assert list((run / "tensorboard").iterdir())
    assert not (run / "lock").exists()


def test_a_run_trains_as_hugging_face_does(in_peace: Path, tiny_qwen2: Path) -> None:
    expected = oracle.train(tiny_qwen2, batches_of(in_peace), MAIN_FLAGS["learning_rate"])
    assert worst_deviation(read_metrics(in_peace), expected) <= 1e-5


def test_exported_model_is_the_trained_one(in_peace: Path, tiny_qwen2: Path) -> None:
    """On the held-out rows transformers computes the run's own losses: of the base that before the first step, of the
    export that after the last one."""
    before, after = [record["loss"] for record in read_metrics(in_peace, "validation")]
    samples = samples_of(in_peace, "validation")
    for model, loss in ((tiny_qwen2, before), (in_peace / "hf", after)):
        assert float(oracle._loss(oracle._model(model, None).eval(), samples)) == pytest.approx(loss, rel=1e-6)
    print(f"\nvalidation loss {before:.4f} -> {after:.4f}")
    assert after < 0.97 * before


@pytest.mark.slow
def test_the_smallest_config_trains(ray_cluster: None, tiny_qwen2: Path, tmp_path: Path) -> None:
    from raymb.cli import main

    config = Path(__file__).parents[2] / "configs" / "cpu-smoke.yaml"
    given = ["--config", str(config), "--hf_model_path", str(tiny_qwen2), "--storage_path", str(tmp_path)]
    assert main(["finetune", *given]) == 0
    run = tmp_path / "cpu-smoke"
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3]
    assert latest_step(run / "checkpoints") == 3
    assert tensor_shapes(run / "hf") == tensor_shapes(tiny_qwen2)

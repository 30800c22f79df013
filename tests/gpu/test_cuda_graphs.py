"""Steps with CUDA graphs against steps without, on two GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.families import make_model
from tests.models import write_rows
from tests.smoke.conftest import read_metrics, words_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
STEPS = 20
FLAGS: dict[str, Any] = {
    "num_workers": 2,
    "tensor_parallel_size": 2,
    "seq_length": 64,
    "global_batch_size": 16,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "train_iters": STEPS,
    "ray_address": "local",
    "save_interval": 10,
    "eval_interval": 5,
    "export_hf": False,
}
GRAPHS = "--cuda_graphs"


def test_graphs_compute_the_same_and_are_resumed_with_and_without(tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / "rows", train=STEPS * FLAGS["global_batch_size"]), tmp_path / "model"
    make_model("Qwen2", model)

    def losses(name: str, *more: str) -> list[float]:
        from raymb.cli import main

        given = {**FLAGS, "hf_model_path": model, "dataset": rows, "storage_path": tmp_path, "experiment_name": name}
        assert main(["finetune", *words_of(given), *more]) == 0
        return [record["loss"] for record in read_metrics(tmp_path / name)]

    without = losses("without")
    first = losses("graphs", GRAPHS, "train.exit_interval=10")
    whole = losses("graphs", GRAPHS)
    losses("mixed", "train.exit_interval=10")
    mixed = losses("mixed", GRAPHS)
    worst = [
        max(abs(one / other - 1) for one, other in zip(graphed, without, strict=True)) for graphed in (whole, mixed)
    ]
    print(f"\nwith graphs {len(first)} and {len(whole)} steps, from the middle on: worst relative deviations {worst}")
    assert len(first) == STEPS // 2 and max(worst) < 1e-3

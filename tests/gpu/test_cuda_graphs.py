"""Steps with CUDA graphs against steps without, on two GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.families import make_model
from tests.gpu.runs import FLAGS, STEPS, train
from tests.models import write_rows
from tests.smoke.conftest import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]
LAYOUT = {"num_workers": 2, "tensor_parallel_size": 2, "micro_batch_size": 2}


def test_graphs_compute_the_same_and_are_resumed_with_and_without(tmp_path: Path) -> None:
    rows, model = write_rows(tmp_path / "rows", train=STEPS * FLAGS["global_batch_size"]), tmp_path / "model"
    make_model("Qwen2", model)
    given = {**LAYOUT, "hf_model_path": model, "dataset": rows, "save_interval": 10, "eval_interval": 5}

    def losses(name: str, *overrides: str, **flags: Any) -> list[float]:
        return [record["loss"] for record in read_metrics(train(tmp_path, name, *overrides, **given, **flags))]

    without = losses("without")
    first = losses("graphs", "train.exit_interval=10", cuda_graphs=True)
    whole = losses("graphs", cuda_graphs=True)
    losses("mixed", "train.exit_interval=10")
    mixed = losses("mixed", cuda_graphs=True)
    losses("back", "train.exit_interval=10", cuda_graphs=True)
    back = losses("back")
    chosen = losses("auto", cuda_graphs="auto")
    assert json.loads((tmp_path / "auto" / "plan.json").read_text())["cuda_graphs"]
    worst = [
        max(abs(one / other - 1) for one, other in zip(graphed, without, strict=True))
        for graphed in (whole, mixed, back, chosen)
    ]
    print(
        f"\nwith graphs {len(first)} and {len(whole)} steps, from the middle on, up to the middle, chosen by auto: "
        f"worst relative deviations {worst}"
    )
    assert len(first) == STEPS // 2 and max(worst) < 1e-3

"""A recipe as the beginning of a real run, with another model and layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.smoke.conftest import read_metrics

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_run_that_starts_from_a_recipe(finetune: Callable[..., Path]) -> None:
    run = finetune(
        "comm_overlap.tp_comm_overlap=false",
        "model.attention_backend=unfused",
        recipe="qwen3_600m_peft_config",
        optimizer_moments="fp32",
        num_workers=2,
        tensor_parallel_size=2,
        train_iters=3,
        lr_warmup_iters=1,
    )
    spec = json.loads((run / "spec.json").read_text())
    assert spec["model"]["recipe"] is None
    assert (spec["parallel"]["tensor_parallel_size"], spec["train"]["train_iters"]) == (2, 3)  # flags
    assert (spec["train"]["seed"], spec["data"]["packing"], spec["peft"]["peft"]) == (
        5678,
        True,
        "lora",
    )  # the recipe's
    metrics = read_metrics(run)
    assert [record["step"] for record in metrics] == [1, 2, 3]
    assert (run / "adapter" / "adapter_config.json").exists()

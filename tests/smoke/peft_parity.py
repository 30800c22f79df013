"""Adapters trained by a run and by PEFT, from the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.smoke.conftest import batches_of, train_variant, worst_deviation

ALL = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def train_as_peft(out: Path, model: Path, kind: str, targets: str, **flags: Any) -> list[dict[str, Any]]:
    """Train adapters, and in PEFT those that the run started with, exported for it: the run's steps, if both agree."""
    from tests.smoke import oracle

    given = {"peft": kind, "lora_rank": 4, "lora_alpha": 8, "lora_target_modules": targets, "learning_rate": 1e-2}
    given |= flags
    steps = train_variant(out, given.pop("num_workers"), hf_model_path=model, **given)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["r"], config["lora_alpha"]) == (kind == "dora", 4, given["lora_alpha"])
    assert config["use_rslora"] == flags.get("use_rslora", False)
    tied = kind == "dora" or targets.startswith("linear")
    expected = oracle.train(model, batches_of(out / "run"), given["learning_rate"], adapter=out / "adapter", tied=tied)
    worst = worst_deviation(steps, expected)
    print(f"\n{kind} {targets} {flags}: loss {steps[0]['loss']:.6f} -> {steps[-1]['loss']:.6f}, worst {worst:.2e}")
    assert worst <= 1e-5
    return steps

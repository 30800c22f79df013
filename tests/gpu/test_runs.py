"""What a run has besides its steps, once each on one GPU: adapters, packing, export, a kill, FP8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.families import make_model
from tests.gpu.runs import EXACT, FLAGS, ON_A_CPU, STEPS, deviations, train, with_faults
from tests.models import write_rows
from tests.smoke.conftest import curve, read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    rows = write_rows(tmp_path / "rows", train=STEPS * FLAGS["global_batch_size"])
    return {"hf_model_path": make_model("Qwen2", tmp_path / "model"), "dataset": rows}


@pytest.mark.parametrize("peft", ["lora", "dora"])
def test_adapters(peft: str, given: dict[str, Any], tmp_path: Path) -> None:
    flags = {**given, "peft": peft, "lora_rank": 4, "learning_rate": 3e-3}
    on_a_cpu = train(tmp_path, f"{peft}-cpu", **flags, **ON_A_CPU)
    exact = deviations(train(tmp_path, f"{peft}-fp32", **flags, **EXACT), on_a_cpu)
    rounded = train(tmp_path, f"{peft}-bf16", **flags, export_hf=True, merge=True)
    assert exact["loss"] < 1e-4 and exact["grad_norm"] < 1e-3
    assert deviations(rounded, on_a_cpu)["loss"] < 3e-3
    assert _verified(rounded) < 5e-2


def test_packing(given: dict[str, Any], tmp_path: Path) -> None:
    flags = {**given, "packing": True, "seq_length": 256, "global_batch_size": 4, "train_iters": 10}
    on_a_cpu = train(tmp_path, "packing-cpu", **flags, **ON_A_CPU)
    exact = deviations(train(tmp_path, "packing-fp32", **flags, **EXACT), on_a_cpu)
    rounded = deviations(train(tmp_path, "packing-bf16", **flags), on_a_cpu)
    assert exact["loss"] < 1e-4 and exact["grad_norm"] < 1e-3 and rounded["loss"] < 3e-3


def test_an_export_is_verified(given: dict[str, Any], tmp_path: Path) -> None:
    errors = {}
    for precision in ("fp32", "bf16"):
        run = train(tmp_path, f"export-{precision}", **given, precision=precision, export_hf=True)
        errors[precision] = _verified(run)
    assert errors["fp32"] < 1e-4 and errors["bf16"] < 3e-2


def test_a_worker_is_killed_and_the_run_ends_as_one_in_peace(given: dict[str, Any], tmp_path: Path) -> None:
    flags = {**given, "save_interval": 5, "max_failures": 1}
    whole = train(tmp_path, "whole", **flags)
    fault = tmp_path / "fault.json"
    fault.write_text(json.dumps([{"do": "kill", "phase": "step", "rank": 0, "step": 12}]))
    killed = train(tmp_path, "killed", **flags, env=with_faults(fault))
    assert fault.with_name("fault.json.0").exists()
    assert (
        "| 10 |" in (killed / "failures" / "1.md").read_text()
        or "step 10" in (killed / "failures" / "1.md").read_text()
    )
    worst = deviations(killed, whole)
    print(f"equal to the last bit: {curve(killed) == curve(whole)}")
    assert worst["loss"] < 1e-3


@pytest.mark.parametrize("precision", ["fp8", "fp8_blockwise"])
def test_fp8(precision: str, given: dict[str, Any], tmp_path: Path) -> None:
    import torch

    if torch.cuda.get_device_capability() != (9, 0) and precision == "fp8_blockwise":
        pytest.skip("a scale a block needs Hopper")
    flags = {**given, "micro_batch_size": 2}
    run = train(tmp_path, precision, **flags, precision=precision, export_hf=True)
    assert deviations(run, train(tmp_path, "bf16", **flags))["loss"] < 3e-2
    assert _verified(run) < 3e-2


def _verified(run: Path) -> float:
    """The largest difference of an exported model's logits from the trained one's, relative; 0 where they are equal."""
    (record,) = read_metrics(run, "export")
    print(f"\nVERIFIED {run.name}: {record['error']:.1e} on {record['rows']} rows")
    return record["error"]

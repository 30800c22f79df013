"""Where the seconds of a real start go."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymb.telemetry import startup
from tests.smoke.conftest import MAIN_FLAGS, read_metrics, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(600)]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_phases_of_a_start_add_up_to_the_time_until_its_first_step(
    workers: int, tiny_qwen2: Path, rows: Path, tmp_path: Path
) -> None:
    given = {"hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": tmp_path, "experiment_name": "run"}
    flags = {**MAIN_FLAGS, **given, "num_workers": workers, "train_iters": 2, "export_hf": False}
    flags |= {"eval_interval": 2, "eval_at_start": True}
    began = time.time()
    subprocess.run([sys.executable, "-m", "raymb", "finetune", *words_of(flags)], check=True)
    told = json.loads((tmp_path / "run" / "startup.json").read_text())
    for phase, seconds in told["phases"].items():
        print(f"{seconds:8.2f} s  {phase}")
    whole = read_metrics(tmp_path / "run")[0]["time"] - began
    assert told["step"] == 1 and min(told["phases"].values()) >= 0
    assert sum(told["phases"].values()) == pytest.approx(whole, rel=0.05)
    assert list(told["phases"]) == [
        *(startup.COMMAND, startup.ROWS, startup.RAY, startup.LAYOUT, startup.PLACES),
        *(startup.JOINED, startup.IMPORTS, startup.MODEL, startup.OPTIMIZER, startup.VALIDATION),
        startup.FIRST_STEP,
    ]

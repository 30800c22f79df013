"""What is wrong where a run is started, or with what it is given: a process says it in seconds, and starts nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fault_table import Row
from tests.smoke.conftest import MAIN_FLAGS, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(200)]

_MARK = "RAYMB_TEST_OF_A_REFUSAL"


def _processes_with(setting: str) -> list[str]:
    """Command lines of the processes that began with an environment variable."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if setting.encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
    return found


@pytest.fixture
def refused(tiny_qwen2: Path, rows: Path, tmp_path: Path) -> Callable[..., tuple[str, float]]:
    """Runs `raymb finetune`, which must end with exit code 2 and one message, and leave no process; what it said, and
    in how many seconds."""

    def run(settings: dict[str, str], **flags: object) -> tuple[str, float]:
        given = {**MAIN_FLAGS, "hf_model_path": tiny_qwen2, "dataset": rows, "num_workers": 1, **flags}
        words = words_of({"storage_path": tmp_path / "runs", "experiment_name": "run", **given})
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "raymb", "finetune", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": "src", _MARK: str(tmp_path), **settings},
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("error: ") == 1, done.stderr
        assert not _processes_with(f"{_MARK}={tmp_path}")
        assert "starting" not in done.stderr and not (tmp_path / "runs" / "run").exists()
        return done.stderr, time.monotonic() - began

    return run


STARTS = {
    "RAY_ADDRESS=http://head.example:8265": (
        {"RAY_ADDRESS": "http://head.example:8265"},
        {"ray_address": None},
        "raymb submit ray --address http://head.example:8265",
    ),
    "RAY_TRAIN_V2_ENABLED=0": ({"RAY_TRAIN_V2_ENABLED": "0"}, {}, "unset RAY_TRAIN_V2_ENABLED"),
    "a TMPDIR too long for Ray's sockets": (
        {"TMPDIR": "/tmp/" + "l" * 60, "RAY_TMPDIR": ""},
        {},
        "is too long for Ray's sockets",
    ),
    "a RAY_TMPDIR that cannot be written": ({"RAY_TMPDIR": "/proc"}, {}, "Ray cannot write /proc/ray"),
    "a storage server that is not there": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        {"storage_path": "s3://bucket/runs"},
        "Could not connect to the endpoint URL",
    ),
    "a hub that does not answer": (
        {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_DOWNLOAD_TIMEOUT": "2"},
        {"hf_model_path": "some/model"},
        "the hub cannot be reached",
    ),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_start_is_refused(case: str, refused: Callable[..., tuple[str, float]], fault_table: list[Row]) -> None:
    settings, flags, expected = STARTS[case]
    said, seconds = refused(settings, **flags)
    assert expected in said, said
    fault_table.append(Row(case, "exit 2 after these seconds, names the way out", f"{seconds:.1f}"))


def test_weights_are_cut_off(
    refused: Callable[..., tuple[str, float]], tiny_qwen2: Path, tmp_path: Path, fault_table: list[Row]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_qwen2.iterdir():
        (model / file.name).write_bytes(file.read_bytes()[: -1000 if file.suffix == ".safetensors" else None])
    said, seconds = refused({}, hf_model_path=model)
    assert "model.safetensors" in said, said
    fault_table.append(Row("weights of the model are cut off", "exit 2, names the file", f"{seconds:.1f}"))


def test_a_wrong_row_is_named_while_ray_is_imported(refused: Callable[..., tuple[str, float]], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    said, _ = refused({}, dataset=rows)
    assert "rows.jsonl line 2" in said, said

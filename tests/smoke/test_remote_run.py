"""A run on storage that is no file system: a real S3 server, and a machine that is lost with all its files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymb.storage.remote import Remote, storage_root
from tests.fault_table import Row
from tests.s3 import Refusal
from tests.smoke.conftest import MAIN_FLAGS, read_metrics, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(600)]
FLAGS: dict[str, Any] = {
    "num_workers": 2,
    "train_iters": 10,
    "save_interval": 3,
    "keep_last": 2,
    "eval_interval": 5,
    "max_validation_samples": 8,
}


def test_a_run_on_s3_survives_the_loss_of_the_machine(
    finetune: Callable[..., Path],
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    whole = finetune(experiment_name="whole", **FLAGS)
    there = {"storage_path": s3, "experiment_name": "run", "save_hf_interval": 6, **FLAGS}
    finetune("train.exit_interval=7", **there)
    remote = Remote.of(s3, "run")
    assert remote is not None
    assert [name for name in remote.listing("checkpoints") if name.startswith("iter")] == [
        "iter_0000006",
        "iter_0000007",
    ]
    assert remote.read_text("checkpoints/latest") == "iter_0000007\n"
    assert f"{remote.url}/checkpoints/iter_0000007" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "cache")  # the machine is gone, and comes back empty
    finetune(**there)
    error = capfd.readouterr().err
    assert "training from step 7" in error and f"{remote.url}/hf" in error
    here = storage_root(s3) / "run"
    names = ("step", "loss", "grad_norm", "learning_rate")
    curves = [[tuple(record[name] for name in names) for record in read_metrics(run)] for run in (here, whole)]
    assert curves[0] == curves[1]
    assert remote.exists("hf/config.json") and remote.exists("metrics.jsonl") and remote.exists("spec.json")
    exported = [f"{name}/{file}" for name in ("hf", "hf-step-6") for file in ("README.md", "loss.png", "config.json")]
    assert [name for name in exported if not remote.exists(name)] == []
    assert remote.listing("logs") == ["worker-00000.log", "worker-00001.log"]
    assert not remote.exists("lock")
    shutil.rmtree(tmp_path / "cache")
    finetune(**there)
    assert "has finished" in capfd.readouterr().err
    fault_table.append(
        Row("storage at a URI, the machine is lost with all its files", "same command, bit-exact", lost="0")
    )


def test_a_broken_checkpoint_at_the_uri_is_left_out(
    finetune: Callable[..., Path],
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    fault_table: list[Row],
) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    flags = {"storage_path": s3, "no_export_hf": True, **FLAGS, "train_iters": 9, "num_workers": 1}
    finetune("train.exit_interval=6", **flags)
    remote = Remote.of(s3, "run", "checkpoints", "iter_0000006")
    assert remote is not None
    content = bytearray(remote.read("__0_0.distcp") or b"")
    content[len(content) // 2] ^= 1
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "broken").write_bytes(content)
    remote.upload(tmp_path / "broken", "__0_0.distcp")
    finetune(**flags)
    error = capfd.readouterr().err
    assert "iter_0000006 is not whole and is left out: __0_0.distcp has another checksum" in error
    assert "training from step 3" in error
    fault_table.append(Row("newest checkpoint at a URI flipped", "finishes from the one before, warns", lost="3"))


def test_a_last_checkpoint_that_the_storage_refuses(
    finetune: Callable[..., Path],
    s3: str,
    s3_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    """It was printed into a log, and the run ended with 0."""
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    refusal = Refusal(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusal.address)
    flags = {"storage_path": s3, "no_export_hf": True, **FLAGS, "num_workers": 1}
    refusal.refuses = "iter_0000006"
    finetune("train.exit_interval=7", **flags)
    assert "warning: no checkpoint at step 6: " in capfd.readouterr().err
    remote = Remote(f"{s3}/run")
    assert remote.read_text("checkpoints/latest") == "iter_0000007\n"
    refusal.refuses = "iter_0000010/manifest.json"
    finetune(**flags, code=1)
    error = capfd.readouterr().err
    assert "the last checkpoint, at step 10, could not be published" in error and "Traceback" not in error
    assert remote.read_text("checkpoints/latest") == "iter_0000009\n"
    refusal.refuses = ""
    shutil.rmtree(tmp_path / "cache")
    finetune(**flags)
    refusal.close()
    assert "training from step 9" in capfd.readouterr().err
    assert [record["step"] for record in read_metrics(storage_root(s3) / "run")] == list(range(1, 11))
    fault_table.append(Row("the storage at a URI refuses a checkpoint", "warns; the next one counts"))
    fault_table.append(Row("the storage at a URI refuses the last one", "exit 1; same command finishes", lost="1"))


def test_a_driver_that_has_lost_its_run_ends_its_workers_and_writes_nothing_more(
    tiny_qwen2: Path,
    rows: Path,
    s3: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault_table: list[Row],
) -> None:
    """It was cut off for a minute, and another machine has taken the run over. It asked for a last checkpoint, in the
    other one's place, and ended with 0."""
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    given = {"hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": s3, "experiment_name": "run"}
    words = words_of({**given, **MAIN_FLAGS, "num_workers": 1, "train_iters": 5000, "no_export_hf": True})
    process = subprocess.Popen(
        [sys.executable, "-m", "raymb", "finetune", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "src"},
    )
    run, remote = storage_root(s3) / "run", Remote(f"{s3}/run")
    deadline = time.monotonic() + 400
    while not (run / "metrics.jsonl").exists() or not read_metrics(run):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.2)
    began = time.monotonic()
    remote.write_text("lock", "another-host 1 1\n")
    remote.write_text("spec.json", "the other one's")
    error = process.communicate(timeout=120)[1]
    seconds = time.monotonic() - began
    print(error)
    assert process.returncode == 1
    assert f"another driver has taken {remote.url} over" in error and "Traceback" not in error
    assert remote.read_text("lock") == "another-host 1 1\n" and remote.read_text("spec.json") == "the other one's"
    assert not [name for name in remote.listing("checkpoints") if name.startswith("iter")], "no last checkpoint"
    outcome = "exit 1 after these seconds, names the other driver, writes nothing more"
    fault_table.append(Row("another driver takes the lock at a URI over", outcome, f"{seconds:.1f}"))

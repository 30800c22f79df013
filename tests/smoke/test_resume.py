"""A run that stops resumes as if it had not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymb.checkpoints.manifest import describe_files, latest_step, read_manifest, steps_of, write_manifest
from tests.fault_table import Row
from tests.smoke.conftest import CURVE, MAIN_FLAGS, TP2, curve, read_metrics

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(400)]


def test_stopped_after_five_of_ten_steps_it_ends_with_the_same_numbers(
    in_peace: Path, finetune: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    flags = {**TP2, "export_hf": False}
    stopped = finetune("train.exit_interval=5", **flags)
    assert [step for step, *_ in curve(stopped)] == [1, 2, 3, 4, 5]
    assert latest_step(stopped / "checkpoints") == 5
    assert "stopped at step 5 of 10" in capfd.readouterr().err
    finetune(**flags)
    assert "training from step 5" in capfd.readouterr().err
    assert curve(stopped) == curve(in_peace)  # exactly: every float is equal to the last bit
    print("\nstep", *CURVE[1:])
    for ours in curve(stopped)[4:]:
        print(*ours)


@pytest.mark.slow
def test_a_checkpoint_of_the_other_backend_is_resumed(
    finetune: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """All but the random state, of which a model without dropout makes no use. tests/gpu has the real exchange."""
    whole = finetune(experiment_name="whole", num_workers=1, train_iters=6)
    stopped = finetune("train.exit_interval=3", experiment_name="stopped", num_workers=1, train_iters=6)
    written = stopped / "checkpoints" / "iter_0000003" / "run_config.yaml"
    written.write_text(written.read_text().replace("distributed_backend: gloo", "distributed_backend: nccl"))
    manifest = read_manifest(written.parent)
    assert manifest is not None
    write_manifest(written.parent, {**manifest.pop("files"), **describe_files([written])}, manifest)
    finetune(experiment_name="stopped", num_workers=1, train_iters=6)
    assert "loading the checkpoint with a fresh random state" in capfd.readouterr().err
    assert curve(stopped) == curve(whole)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_checkpoint(
    finetune: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """No validation is better by 10 than the first one."""
    flags = {"num_workers": 1, "eval_interval": 2, "max_validation_samples": 8, "save_interval": 2}
    flags |= {
        "keep_last": 1,
        "keep_best": 1,
        "early_stopping_patience": 3,
        "early_stopping_threshold": 10,
        "train_iters": 50,
    }
    run = finetune(**flags)
    losses = {record["step"]: record["loss"] for record in read_metrics(run, "validation")}
    assert list(losses) == [2, 4, 6, 8]
    best = min(losses, key=lambda step: losses[step])
    assert (run / "checkpoints" / "best").read_text() == f"iter_{best:07d}\n"
    assert steps_of(run / "checkpoints") == sorted({8, best}, reverse=True)
    assert (run / "hf" / "config.json").exists()
    assert "stopped early at step 8" in capfd.readouterr().err
    finetune(**flags)
    assert "has finished" in capfd.readouterr().err
    finetune(**{**flags, "early_stopping_patience": None, "train_iters": 10})
    assert "training from step 8" in capfd.readouterr().err


@pytest.mark.slow
def test_out_of_time(finetune: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]) -> None:
    flags = {"num_workers": 2, "train_iters": 5000, "no_export_hf": True}
    run = finetune(**flags, max_time="1s", code=75)  # over before the workers are there: after their first step
    step = latest_step(run / "checkpoints")
    assert step is not None and 1 <= step <= 50 and read_metrics(run)[-1]["step"] == step
    assert f"out of time (--max_time 1s); the same command resumes from step {step}" in capfd.readouterr().err
    finetune(**{**flags, "train_iters": step + 2})
    assert curve(run)[-1][0] == step + 2
    fault_table.append(Row("--max_time is over", "exit 75, checkpoint first; same command resumes", lost="0"))


@pytest.mark.slow
def test_finished_run_is_not_trained_again(finetune: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    run = finetune(num_workers=1, train_iters=2)
    before = (run / "metrics.jsonl").read_bytes()
    finetune(num_workers=1, train_iters=2)
    assert "has finished" in capfd.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before
    finetune(num_workers=1, train_iters=2, resume="never", code=2)
    error = capfd.readouterr().err
    for way_out in ("--resume auto", "--experiment_name", "--overwrite"):
        assert way_out in error
    finetune(num_workers=1, train_iters=2, learning_rate=2e-3, overwrite=True)
    assert read_metrics(run)[0]["learning_rate"] == 2e-3


def test_another_runs_checkpoint_is_never_loaded(
    in_peace: Path, finetune: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(in_peace, tmp_path / "run")
    finetune(**TP2, train_iters=12, seq_length=32, code=2)
    error = capfd.readouterr().err
    assert "seq_length was 64, is 32" in error and "--overwrite" in error


def test_a_failing_worker_is_named(
    finetune: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    """An override that torch itself refuses: exit 1, one line with the cause, and where the logs are."""
    run = finetune("model.attention_dropout=7", num_workers=1, code=1)
    error = capfd.readouterr().err
    assert "worker 0 failed: " in error and "between 0 and 1, but got 7" in error and str(run / "logs") in error
    assert "Traceback" not in error
    fault_table.append(
        Row("a worker raises what would come again", "exit 1, one line with the cause and the logs' place")
    )


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.slow)],
)
def test_interrupt_leaves_the_last_whole_checkpoint(
    number: signal.Signals, tiny_qwen2: Path, rows: Path, tmp_path: Path, fault_table: list[Row]
) -> None:
    """A process of its own, with a Ray cluster of its own that must end with it."""
    flags = {**MAIN_FLAGS, "train_iters": 5000, "save_interval": 3, "hf_model_path": tiny_qwen2, "dataset": rows}
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    command = [
        sys.executable,
        "-m",
        "raymb",
        "finetune",
        *words,
        "--storage_path",
        tmp_path,
        "--experiment_name",
        "run",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "src"})
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 180
    while latest_step(checkpoints) is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(number)
    began = time.monotonic()
    error = process.communicate(timeout=120)[1]
    seconds = time.monotonic() - began
    assert process.returncode == 130, error
    step = latest_step(checkpoints)
    assert step is not None
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == step, "the last finished step is in the checkpoint"
    assert f"resumes from step {step}" in error and "Traceback" not in error
    assert not (tmp_path / "run" / "lock").exists()
    assert json.loads((tmp_path / "run" / "spec.json").read_text())["train"]["train_iters"] == 5000
    outcome = "exit 130 after these seconds, checkpoint of the last step"
    fault_table.append(Row(f"{number.name} to the driver while it trains", outcome, f"{seconds:.1f}", "0"))

"""Faults beside the training: what it writes to, who watches it, what stops it. Each is a real run with a row in
docs/faults.md."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymb.checkpoints.manifest import iteration_dir, latest_step, steps_of
from raymb.run.directory import REJECTED
from tests.fault_table import Row
from tests.smoke.conftest import FAULTS, read_metrics
from tests.smoke.test_faults import FLAGS, command_of, mounted, page, same_end, start
from tests.smoke.test_faults import run_with as run_with
from tests.smoke.test_faults import undisturbed as undisturbed

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(600)]
KILL = {"do": "kill", "phase": "step", "rank": 1, "step": 7}
NAN = {"do": "nan", "phase": "step", "rank": 1, "step": 7}


def test_the_last_line_of_the_metrics_is_torn(
    finetune: Callable[..., Path], undisturbed: Path, fault_table: list[Row]
) -> None:
    run = finetune("train.exit_interval=10", **FLAGS)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 11, "lo')
    finetune(**FLAGS)
    same_end(run, undisturbed)
    fault_table.append(
        Row("the last line of metrics.jsonl is torn", "same command finishes, bit-exact, every step once")
    )


def test_a_failures_page_cannot_be_written(
    finetune: Callable[..., Path],
    run_with: Callable[..., Path],
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    run = finetune("train.exit_interval=5", **FLAGS)
    (run / "failures").write_text("a file where the directory should be")
    run_with(KILL)
    error = capfd.readouterr().err
    same_end(run, undisturbed)
    assert "Traceback" not in error and re.search(r"page +could not be written", error), error
    fault_table.append(Row("a rank dies, and the failure's page cannot be written", "says so, finishes, bit-exact"))


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403, "no such login")

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    """A tracking server that lets nobody in."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_tracker_refuses(
    finetune: Callable[..., Path],
    undisturbed: Path,
    refusing: str,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    run = finetune(**FLAGS, mlflow_experiment="tuning", mlflow_tracking_uri=refusing)
    same_end(run, undisturbed)
    assert capfd.readouterr().err.count("warning: the run continues without MLflow: ") == 1
    fault_table.append(Row("a tracking server (MLflow) that refuses", "says so once, finishes, bit-exact"))


def test_the_newest_checkpoint_is_broken_and_one_is_kept(
    finetune: Callable[..., Path], undisturbed: Path, fault_table: list[Row]
) -> None:
    """The damaged one counted as the newest, and the one just saved was deleted for it."""
    run = finetune("train.exit_interval=10", **FLAGS)
    newest = Path(iteration_dir(run / "checkpoints", 10))
    victim = newest / "__1_0.distcp"
    victim.write_bytes(victim.read_bytes()[:-100])
    finetune("train.exit_interval=8", **{**FLAGS, "keep_last": 1})
    assert steps_of(run / "checkpoints") == [10, 8] and latest_step(run / "checkpoints") == 8
    assert (newest / REJECTED).exists()
    finetune(**{**FLAGS, "keep_last": 1})
    same_end(run, undisturbed)
    fault_table.append(
        Row("newest checkpoint truncated, --keep_last 1", "set aside; the one saved next is kept", lost="5")
    )


def test_a_nan_without_clipping(
    run_with: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    run = run_with(NAN, bad_loss="skip", clip_grad=0)
    records = {record["step"]: record for record in read_metrics(run)}
    assert "its update is left out" in capfd.readouterr().err
    assert records[8]["skipped"] is True and all(records[step]["loss"] < records[1]["loss"] for step in (9, 15))
    fault_table.append(Row("NaN in a step, --bad_loss skip, --clip_grad 0", "finishes without the update"))


def test_a_stop_is_agreed_on_a_step_that_is_left_out(
    run_with: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    """SIGTERM after step 7, while all ranks wait for this one: they agree on step 8, which rollback leaves out."""
    term = {"do": "term", "phase": "step", "rank": 1, "step": 7, "after": 0, "seconds": 3}
    run = run_with(NAN, term, bad_loss="rollback")
    assert [record["step"] for record in read_metrics(run)] == [*range(1, 8), *range(9, 16)]
    found = page(run, 2)
    assert "for preemption" in found["what"] and found["resumed from"] == "step 9" and found["steps lost"] == "0"
    fault_table.append(
        Row(
            "SIGTERM, agreed on for a step that rollback leaves out",
            "checkpoint after the next one, finishes",
            found["seconds to training again"],
            "0",
        )
    )


def test_a_long_export_is_no_hang(run_with: Callable[..., Path], undisturbed: Path, fault_table: list[Row]) -> None:
    run = run_with({"do": "slow", "phase": "exporting", "rank": 0}, hang_timeout=8, max_failures=0)
    same_end(run, undisturbed)
    assert not (run / "failures").exists()
    seconds = sum(one["seconds"] for one in read_metrics(run, "export"))
    fault_table.append(Row("an export longer than --hang_timeout 8", "finishes, bit-exact, nobody is ended"))
    print(f"the export took {seconds} s")


@pytest.mark.parametrize("max_failures", [9, 0], ids=["restarts", "no restart"])
def test_a_rank_raises_once(
    max_failures: int,
    run_with: Callable[..., Path],
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    fault = {"do": "raise", "phase": "step", "rank": 2, "step": 7}
    if max_failures == 0:
        run_with(fault, max_failures=0, code=1)
        error = capfd.readouterr().err
        assert "worker 2 failed: RuntimeError: a fault of the test" in error and "Traceback" not in error
        fault_table.append(Row("rank 2 of 3 raises, --max_failures 0", "exit 1, names rank and cause"))
        return
    run = run_with(fault)
    same_end(run, undisturbed)
    found = page(run, 1)
    assert found["rank"] == "2" and "a fault of the test" in found["what"]
    seconds = found["seconds to training again"]
    fault_table.append(Row("rank 2 of 3 raises once", "finishes, bit-exact", seconds, found["steps lost"]))


def test_the_same_exception_twice(
    run_with: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    """Without a checkpoint between: a third time would be no other."""
    faults = [{"do": "raise", "phase": "step", "rank": 2, "step": step} for step in (6, 7)]
    run = run_with(*faults, code=1)
    assert "a fault of the test" in capfd.readouterr().err and len(list((run / "failures").glob("*.md"))) == 2
    fault_table.append(Row("rank 2 of 3 raises the same twice, no checkpoint between", "exit 1, no third start"))


def test_the_records_actor_dies(
    run_with: Callable[..., Path], undisturbed: Path, capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    """What it had not handed over is lost; the training is not."""
    run = run_with({"do": "other", "actor": "Hub", "phase": "step", "rank": 1, "step": 7})
    error = capfd.readouterr().err
    assert "Traceback" not in error, error
    assert latest_step(run / "checkpoints") == 15
    assert (run / "hf" / "model.safetensors").read_bytes() == (undisturbed / "hf" / "model.safetensors").read_bytes()
    fault_table.append(Row("SIGKILL of the actor that takes the ranks' records", "finishes, weights bit-exact"))


def test_the_records_actor_answers_late(
    run_with: Callable[..., Path], undisturbed: Path, fault_table: list[Row]
) -> None:
    """Later than the driver waits: what the answer held was lost."""
    run = run_with({"do": "pause", "actor": "Hub", "phase": "step", "rank": 1, "step": 7, "seconds": 14})
    same_end(run, undisturbed)
    assert not (run / "failures").exists()
    fault_table.append(Row("the actor of the ranks' records stops for 12 s", "finishes, bit-exact, no record is lost"))


def test_the_controller_dies(
    run_with: Callable[..., Path],
    finetune: Callable[..., Path],
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    run = run_with({"do": "other", "actor": "Controller", "phase": "step", "rank": 1, "step": 7}, code=1)
    error = capfd.readouterr().err
    assert "Traceback" not in error and "error: " in error
    finetune(**FLAGS)
    same_end(run, undisturbed)
    fault_table.append(Row("SIGKILL of Ray Train's controller", "exit 1; same command finishes, bit-exact", lost="2"))


@pytest.fixture
def driver(tiny_qwen2: Path, rows: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver with a Ray of its own, in whose workers a fault happens."""
    processes = []

    def begin(*faults: dict[str, Any], **flags: Any) -> subprocess.Popen[str]:
        (tmp_path / "faults.json").write_text(json.dumps(faults))
        command = command_of(tmp_path, tiny_qwen2, rows, **{"eval_interval": 0, **flags})
        command += ["--env", f"PYTHONPATH={FAULTS}{os.pathsep}src", "--env", f"RAYMB_FAULTS={tmp_path / 'faults.json'}"]
        processes.append(start(command))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()


def until_the_fault(process: subprocess.Popen[str], home: Path) -> None:
    while not (home / "faults.json.0").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    """Its exit code after Ctrl-C, what it said, and after how many seconds."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert "Traceback" not in said, said
    return process.returncode, said, time.monotonic() - began


def test_ctrl_c_while_exports_are_finished(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path, fault_table: list[Row]
) -> None:
    flags = {"num_workers": 1, "train_iters": 5}
    process = driver(**flags)
    assert process.stderr is not None
    while "finishing the exports" not in (line := process.stderr.readline()):
        assert line
    code, said, seconds = interrupted(process)
    assert code == 130 and not (tmp_path / "run" / "hf").exists(), said
    assert latest_step(tmp_path / "run" / "checkpoints") == 5
    again = driver(**flags)
    error = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and (tmp_path / "run" / "hf" / "model.safetensors").exists(), error
    fault_table.append(Row("Ctrl-C while exports are finished", "exit 130; same command writes them", f"{seconds:.1f}"))


def test_ctrl_c_twice(driver: Callable[..., subprocess.Popen[str]], tmp_path: Path, fault_table: list[Row]) -> None:
    """A rank that is stopped keeps the last checkpoint waiting."""
    stopped = {"do": "stop", "phase": "step", "rank": 1, "step": 7}
    process = driver(stopped, num_workers=2, train_iters=2000, grace_time=300)
    until_the_fault(process, tmp_path)
    process.send_signal(signal.SIGINT)
    time.sleep(5)
    assert process.poll() is None, "it waits for the last checkpoint"
    code, said, seconds = interrupted(process)
    assert code == 130 and "resumes from step 5" in said, said
    fault_table.append(Row("Ctrl-C twice, a rank is stopped", "exit 130 after these seconds", f"{seconds:.1f}", "2"))


def test_ctrl_c_in_the_last_step(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path, fault_table: list[Row]
) -> None:
    """What follows is a success, and not a run that was interrupted."""
    waits = {"do": "nothing", "phase": "step", "rank": 1, "step": 9, "seconds": 5}
    process = driver(waits, num_workers=2, train_iters=10)
    until_the_fault(process, tmp_path)
    code, said, _ = interrupted(process)
    assert code == 0 and (tmp_path / "run" / "hf" / "model.safetensors").exists(), said
    fault_table.append(Row("Ctrl-C in the last step", "exit 0, exported", lost="0"))


def test_ctrl_c_before_a_rank_raises(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path, fault_table: list[Row]
) -> None:
    """What follows is a failure, and not a run that was interrupted."""
    waits = {"do": "nothing", "phase": "step", "rank": 1, "step": 7, "seconds": 5}
    raises, flags = {"do": "raise", "phase": "saving", "rank": 1}, {"save_interval": 0, "max_failures": 0}
    process = driver(waits, raises, num_workers=2, train_iters=2000, **flags)
    until_the_fault(process, tmp_path)
    code, said, _ = interrupted(process)
    assert code == 1 and "a fault of the test" in said, said
    fault_table.append(Row("Ctrl-C, and a rank raises in the last checkpoint", "exit 1, names rank and cause"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_ctrl_c_where_there_is_no_room_for_the_last_checkpoint(
    driver: Callable[..., subprocess.Popen[str]], tmp_path: Path, fault_table: list[Row]
) -> None:
    """It was a warning, and exit 130 named a checkpoint that lacks the last steps."""
    waits = {"do": "nothing", "phase": "step", "rank": 0, "step": 8, "seconds": 5}
    with mounted(tmp_path / "disk", "size=5m") as disk:
        process = driver(waits, num_workers=1, train_iters=2000, output_dir=disk)
        until_the_fault(process, tmp_path)
        code, said, _ = interrupted(process)
        assert code == 1 and re.search(r"the last checkpoint, at step (8|9|10), could not be written", said), said
        assert latest_step(disk) == 5
    fault_table.append(Row("Ctrl-C, and no room for the last checkpoint", "exit 1, names the step and the flag"))

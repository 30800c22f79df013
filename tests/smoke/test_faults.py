"""Real faults in real runs: processes that die, stop or are told to go, files that break, disks that fill up. Every run
must end with the curve that it would have had. docs/faults.md has a row of each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymb.checkpoints.manifest import iteration_dir, latest_step, steps_of, why_not_whole
from raymb.cli import main
from raymb.telemetry.events import read_lines
from tests.fault_table import Row
from tests.smoke.conftest import MAIN_FLAGS, curve, read_metrics, run_in_peace, worst_deviation

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(600)]
FLAGS: dict[str, Any] = {
    "num_workers": 3,
    "global_batch_size": 6,
    "train_iters": 15,
    "save_interval": 5,
    "eval_interval": 5,
    "max_validation_samples": 8,
    "max_failures": 9,
}


@pytest.fixture
def run_with(finetune_with_faults: Callable[..., Path]) -> Callable[..., Path]:
    """A run in whose workers the given faults happen."""
    return lambda *faults, **flags: finetune_with_faults(*faults, **{**FLAGS, **flags})


@pytest.fixture(scope="session")
def undisturbed(ray_cluster: None, tiny_qwen2: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with no fault."""
    return run_in_peace(tmp_path_factory.mktemp("undisturbed"), hf_model_path=tiny_qwen2, dataset=rows, **FLAGS)


def same_end(run: Path, undisturbed: Path) -> None:
    """Every number, every validation and every exported byte is that of the run with no fault."""
    assert curve(run) == curve(undisturbed)
    validations = [[(v["step"], v["loss"]) for v in read_metrics(of, "validation")] for of in (run, undisturbed)]
    assert validations[0] == validations[1]
    weights = [sorted((of / "hf").glob("*.safetensors")) for of in (run, undisturbed)]
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]
    assert not why_not_whole(iteration_dir(run / "checkpoints", FLAGS["train_iters"]))
    assert not (run / "lock").exists()


def page(run: Path, number: int) -> dict[str, str]:
    """The table of failures/N.md."""
    lines = (run / "failures" / f"{number}.md").read_text().splitlines()
    cells = [re.fullmatch(r"\| (.+?) \| (.*) \|", line) for line in lines]
    return {cell[1]: cell[2] for cell in cells if cell}


def kills(rank: int) -> list[dict[str, Any]]:
    at = [("importing", None), ("loading", None), ("step", 7), ("writing", 10), ("validating", 15), ("exporting", None)]
    return [
        {"do": "kill", "phase": phase, "rank": rank, **({} if step is None else {"step": step})} for phase, step in at
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_rank_is_killed_in_every_phase(
    rank: int, run_with: Callable[..., Path], undisturbed: Path, fault_table: list[Row]
) -> None:
    faults = kills(rank)
    run = run_with(*faults)
    same_end(run, undisturbed)
    for number, fault in enumerate(faults, 1):
        found = page(run, number)
        assert found["rank"] == str(rank)
        assert "died without an exception" in found["what"]
        # Beside the training a checkpoint takes its time, in which other ranks continue.
        assert found["steps lost"] == "-" or int(found["steps lost"]) <= FLAGS["save_interval"] + 2
        seconds = found["seconds to training again"]
        where = "asynchronous save" if fault["phase"] == "writing" else fault["phase"]
        fault_table.append(
            Row(f"SIGKILL of rank {rank} of 3, {where}", "finishes, bit-exact", seconds, found["steps lost"])
        )


def test_a_rank_is_killed_in_a_step(run_with: Callable[..., Path], undisturbed: Path) -> None:
    """The short form of the above, in every run of the tests."""
    run = run_with({"do": "kill", "phase": "step", "rank": 1, "step": 7})
    same_end(run, undisturbed)
    found = page(run, 1)
    assert (found["rank"], found["phase"], found["resumed from"]) == ("1", "step 8", "step 5")
    assert found["steps lost"] == "2"
    told = [{name: event.get(name) for name in ("event", "step", "code")} for event in read_lines(run / "events.jsonl")]
    assert [tuple(event.values()) for event in told if event["event"] != "checkpoint"] == [
        ("started", None, None),
        ("training", 0, None),
        ("failure", 7, None),
        ("training", 5, None),
        ("ended", None, 0),
    ]
    assert main(["report", str(run), "--compare", str(undisturbed)]) == 0
    html = (run / f"report-{undisturbed.name}.html").read_text()
    assert "failure 1 (rank 1, after step 7)" in html and "training again from step 5" in html


def test_an_undisturbed_run_is_listed_and_reported(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(undisturbed.parent), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    losses = {one["step"]: one["loss"] for one in read_metrics(undisturbed, "validation")}
    best = min(losses, key=lambda step: losses[step])
    assert (line["state"], line["step"], line["loss"]) == ("finished", 15, read_metrics(undisturbed)[-1]["loss"])
    assert (line["best_validation_loss"], line["best_validation_step"]) == (losses[best], best)
    assert main(["report", str(undisturbed)]) == 0
    html = Path(capsys.readouterr().out.strip()).read_text()
    for expected in ("15 of 15", "3 workers train", "exit code 0: finished", "--max_failures", "rows by length"):
        assert expected.lower() in html.lower()
    assert html.count('<figure class="chart">') == 5 + 5 + 6
    started = next(event for event in read_lines(undisturbed / "events.jsonl") if event["event"] == "training")
    assert (started["workers"], started["nodes"]) == (3, 1) and started["chip"] in (*_processors(), "cpu")
    for fact in ("3 CPU workers", f"{started['chip']} on 1 node", "CPU-worker hours", "perplexity, first to best"):
        assert fact in html


def _processors() -> set[str]:
    """As lscpu tells them."""
    said = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    return {" ".join(name.split()) for name in re.findall(r"^Model name:(.*)$", said, re.MULTILINE)}


@pytest.mark.slow
def test_a_rank_is_killed_in_a_synchronous_save(
    run_with: Callable[..., Path], undisturbed: Path, fault_table: list[Row]
) -> None:
    faults = [{"do": "kill", "phase": "writing", "rank": rank, "step": 5 * rank + 5} for rank in range(3)]
    run = run_with(*faults, no_async_save=True)
    same_end(run, undisturbed)
    for number, fault in enumerate(faults, 1):
        found = page(run, number)
        assert found["steps lost"] == "5" and found["phase"] == "saving"
        fault_table.append(
            Row(
                f"SIGKILL of rank {fault['rank']} of 3, synchronous save",
                "finishes, bit-exact",
                found["seconds to training again"],
                found["steps lost"],
            )
        )


@pytest.mark.slow
def test_failures_are_counted(
    run_with: Callable[..., Path], capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    run = run_with(
        *[{"do": "kill", "phase": "step", "rank": 0, "step": step} for step in (1, 2)], max_failures=1, code=1
    )
    error = capfd.readouterr().err
    assert "start again (failures: 1 of at most 1)" in error
    assert "give up: the 1 restarts (--max_failures) are used up" in error and "failures/2.md" in error
    assert "Traceback" not in error
    assert latest_step(run / "checkpoints") is None
    fault_table.append(Row("SIGKILL once more than --max_failures", "exit 1, both pages named"))


@pytest.mark.slow
def test_a_rank_hangs(run_with: Callable[..., Path], undisturbed: Path, fault_table: list[Row]) -> None:
    run = run_with({"do": "stop", "phase": "step", "rank": 1, "step": 7}, hang_timeout=8)
    same_end(run, undisturbed)
    found = page(run, 1)
    assert found["rank"] == "1" and "no progress in step 8 (its process is stopped)" in found["what"]
    stacks = sorted(file.name for file in (run / "logs").glob("stacks-*.txt"))
    assert stacks == ["stacks-00000.txt", "stacks-00002.txt"]
    assert "train_step" in (run / "logs" / "stacks-00000.txt").read_text()
    fault_table.append(
        Row(
            "SIGSTOP of rank 1 of 3 (--hang_timeout 8)",
            "finishes, bit-exact; stacks written",
            found["seconds to training again"],
            found["steps lost"],
        )
    )


@pytest.mark.slow
def test_a_worker_is_told_to_go(run_with: Callable[..., Path], undisturbed: Path, fault_table: list[Row]) -> None:
    """SIGTERM, as a system sends it before it takes a machine away: a checkpoint first, and no failure is charged."""
    run = run_with({"do": "term", "phase": "step", "rank": 2, "step": 7}, max_failures=0)
    same_end(run, undisturbed)
    found = page(run, 1)
    assert "for preemption" in found["what"] and found["steps lost"] == "0"
    fault_table.append(
        Row(
            "SIGTERM to rank 2 of 3",
            "finishes, bit-exact; checkpoint first",
            found["seconds to training again"],
            found["steps lost"],
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fail", "skip", "rollback"])
def test_a_nan(
    mode: str,
    run_with: Callable[..., Path],
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    fault = {"do": "nan", "phase": "step", "rank": 1, "step": 7}
    run = run_with(fault, bad_loss=mode, code=1 if mode == "fail" else 0)
    error = capfd.readouterr().err
    if mode == "fail":
        assert "step 8: the gradient norm is nan" in error and "--bad_loss skip" in error
        assert latest_step(run / "checkpoints") == 5
        fault_table.append(Row("NaN in a step, --bad_loss fail", "exit 1, names the step"))
        return
    assert curve(run)[:7] == curve(undisturbed)[:7]
    records = {record["step"]: record for record in read_metrics(run)}
    assert all(records[step]["loss"] < records[1]["loss"] for step in (9, 15))
    if mode == "skip":
        assert records[8]["loss"] is None and records[8]["skipped"] is True
        assert "its update is left out" in error
        fault_table.append(Row("NaN in a step, --bad_loss skip", "finishes without the update"))
    else:
        assert 8 not in records
        found = page(run, 1)
        seconds = found["seconds to training again"]
        fault_table.append(
            Row("NaN in a step, --bad_loss rollback", "finishes without the batch", seconds, found["steps lost"])
        )


@pytest.mark.slow
def test_the_clock_jumps(run_with: Callable[..., Path], undisturbed: Path, fault_table: list[Row]) -> None:
    run = run_with(
        *[{"do": "clock", "phase": "step", "rank": rank, "step": 3} for rank in (0, 2)], hang_timeout=60, max_time="1h"
    )
    same_end(run, undisturbed)
    assert not (run / "failures").exists()
    fault_table.append(Row("the clock of two ranks jumps ahead a day", "finishes, bit-exact", lost="0"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest"])
def test_the_newest_checkpoint_is_broken(
    damage: str,
    finetune: Callable[..., Path],
    undisturbed: Path,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    run = finetune("train.exit_interval=10", **FLAGS)
    newest = Path(iteration_dir(run / "checkpoints", 10))
    victim = newest / "__1_0.distcp"
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    else:
        (newest / "manifest.json").unlink()
    untouched = _contents(Path(iteration_dir(run / "checkpoints", 5)))
    finetune(**FLAGS)
    error = capfd.readouterr().err
    assert "iter_0000010 is not whole and is left out" in error and "training from step 5" in error
    assert _contents(Path(iteration_dir(run / "checkpoints", 5))) == untouched
    same_end(run, undisturbed)
    fault_table.append(Row(f"newest checkpoint {damage}", "finishes from the one before, bit-exact, warns", lost="5"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_the_disk_is_full(
    finetune: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    """A checkpoint needs about 3.6 MB here. The run continues without, and is complete once there is room again."""
    with mounted(tmp_path / "disk", "size=9m") as disk:
        flags = {**FLAGS, "output_dir": disk, "no_export_hf": True}
        run = finetune(**flags, code=1)
        error = capfd.readouterr().err
        assert "no checkpoint at step" in error and "No space left on device" in error
        assert "the last checkpoint, at step 15, could not be written" in error
        kept = steps_of(disk)
        assert kept and all(not why_not_whole(iteration_dir(disk, step)) for step in kept), "nothing half written"
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        finetune(**flags)
        assert latest_step(disk) == 15 and [step for step, *_ in curve(run)] == list(range(1, 16))
        fault_table.append(Row("disk full while saving", "continues; exit 1 at the last save; same command finishes"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_the_disk_is_full_when_early_stopping_ends_the_run(
    finetune: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    """Its last checkpoint is missing all the same. No validation is better by 10 than the first one."""
    with mounted(tmp_path / "disk", "size=5m") as disk:
        flags = {**FLAGS, "output_dir": disk, "no_export_hf": True, "num_workers": 1}
        flags |= {"early_stopping_patience": 1, "early_stopping_threshold": 10}
        finetune(**flags, code=1)
        assert "the last checkpoint, at step 10, could not be written" in capfd.readouterr().err
        assert latest_step(disk) == 5
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        finetune(**flags)
        assert "stopped early at step 10" in capfd.readouterr().err and latest_step(disk) == 10
        fault_table.append(Row("disk full at the last save after early stopping", "exit 1; same command finishes"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_the_storage_is_read_only(
    finetune: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], fault_table: list[Row]
) -> None:
    with mounted(tmp_path / "disk", "ro,size=1m") as disk:
        finetune(**{**FLAGS, "storage_path": disk}, code=2)
        assert "Read-only file system" in (error := capfd.readouterr().err) and "--storage_path" in error
        assert list(disk.iterdir()) == []
        fault_table.append(Row("storage read-only", "exit 2 before a worker starts"))


@contextlib.contextmanager
def mounted(disk: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, for a while."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def command_of(storage: Path, model: Path, rows: Path, **flags: Any) -> list[str]:
    given = {**MAIN_FLAGS, **FLAGS, "hf_model_path": model, "dataset": rows, "storage_path": storage, **flags}
    words = [word for flag, value in given.items() for word in (f"--{flag}", str(value))]
    return [sys.executable, "-m", "raymb", "finetune", *words, "--experiment_name", "run"]


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "src"})


def wait_for_checkpoint(process: subprocess.Popen[str], checkpoints: Path, step: int) -> None:
    deadline = time.monotonic() + 180
    while (latest_step(checkpoints) or 0) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.05)


@pytest.mark.slow
def test_the_driver_is_killed_and_two_at_once(
    tiny_qwen2: Path, rows: Path, tmp_path: Path, fault_table: list[Row]
) -> None:
    """Three processes with clusters of their own: one that is killed, one that comes while another one runs."""
    flags = {"num_workers": 1, "train_iters": 2000, "save_interval": 5, "eval_interval": 0}
    command = command_of(tmp_path, tiny_qwen2, rows, **flags)
    first = start(command)
    checkpoints = tmp_path / "run" / "checkpoints"
    wait_for_checkpoint(first, checkpoints, 5)
    second = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"})
    assert second.returncode == 2 and f"in use by process {first.pid}" in second.stderr
    fault_table.append(Row("two drivers on one run directory", "the second: exit 2, names the first"))
    first.send_signal(signal.SIGKILL)
    first.wait()
    at = latest_step(checkpoints)
    assert at is not None
    seen = read_metrics(tmp_path / "run")[-1]["step"]
    began = time.monotonic()
    third = start(command_of(tmp_path, tiny_qwen2, rows, **{**flags, "train_iters": at + 10}))
    wait_for_checkpoint(third, checkpoints, at + 5)
    seconds = time.monotonic() - began
    error = third.communicate(timeout=180)[1]
    assert third.returncode == 0, error
    told = re.search(r"training from step (\d+)", error)
    assert told is not None
    resumed = int(told[1])
    assert resumed in (at, at + 5)  # a save may have been under way, and steps that the driver had not written yet
    steps = [record["step"] for record in read_metrics(tmp_path / "run")]
    assert steps == [*range(1, min(seen, resumed) + 1), *range(resumed + 1, at + 11)]
    fault_table.append(Row("SIGKILL of the driver, same command again", "finishes", f"{seconds:.1f}", "at most 5"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after",
    [
        ({"num_workers": 2, "tensor_parallel_size": 2}, {"num_workers": 1}),
        ({"num_workers": 2, "pipeline_parallel_size": 2}, {"num_workers": 1}),
        ({"num_workers": 1}, {"num_workers": 2, "tensor_parallel_size": 2}),
    ],
    ids=["TP 2 to TP 1", "PP 2 to PP 1", "TP 1 to TP 2"],
)
def test_another_layout(
    before: dict[str, int],
    after: dict[str, int],
    finetune: Callable[..., Path],
    undisturbed: Path,
    fault_table: list[Row],
    request: pytest.FixtureRequest,
) -> None:
    finetune("train.exit_interval=7", **{**FLAGS, **before})
    run = finetune(**{**FLAGS, **after})
    ours, theirs = read_metrics(run), read_metrics(undisturbed)
    assert [record["step"] for record in ours] == list(range(1, 16))
    worst = worst_deviation(ours, theirs)
    assert worst < 1e-5
    assert not (run / "checkpoints" / "reshaped").exists()
    case = request.node.callspec.id
    fault_table.append(Row(f"resuming in another layout, {case}", f"finishes, curve within {worst:.1e}", lost="0"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_another_model_or_tokenizer(
    what: str,
    finetune: Callable[..., Path],
    undisturbed: Path,
    tiny_qwen2: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    fault_table: list[Row],
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    changed = tmp_path / "changed"
    shutil.copytree(tiny_qwen2, changed)
    if what == "model":
        weights = changed / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        file = changed / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        file.write_text(json.dumps({**settings, "bos_token": "<|endoftext|>"}))
    untouched = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    finetune(**{**FLAGS, "train_iters": 20, "hf_model_path": changed}, code=2)
    error = capfd.readouterr().err
    assert f"  - {what}: " in error and f"--accept_changes {what}" in error
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == untouched
    fault_table.append(Row(f"resume with another {what}", "exit 2, names the difference and the flag"))

"""`raymb runs`: where, in which order, and as it changes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymb.cli import main

SOURCE = Path(__file__).parents[2] / "src"


def write_run(
    storage: Path, name: str, step: int, loss: float | None, validation: float | None, seconds: float
) -> None:
    run = storage / name
    run.mkdir(parents=True)
    (run / "spec.json").write_text("{}")
    (run / "plan.json").write_text(json.dumps({"train_iters": 100}))
    records = []
    if loss is not None:
        speed = 100.0 * step
        records.append({"kind": "train", "step": step, "loss": loss, "tokens_per_second_per_worker": speed})
    if validation is not None:
        records.append({"kind": "validation", "step": step, "loss": validation})
    lines = [json.dumps({**record, "time": seconds}) for record in records]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    place = tmp_path / "runs"
    write_run(place, "b-first", 30, 1.5, 1.2, 1000)
    write_run(place, "c-second", 10, 1.1, 1.9, 2000)
    write_run(place, "a-third", 20, 1.9, None, 3000)
    write_run(place, "d-nothing", 0, None, None, 0)
    return place


def names(storage: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["runs", "--storage_path", str(storage), "--json", *words]) == 0
    return [line["name"].partition("-")[2] for line in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("when", ["nothing", "first", "second", "third"]),
        ("name", ["third", "first", "second", "nothing"]),
        ("step", ["nothing", "second", "third", "first"]),
        ("loss", ["nothing", "third", "first", "second"]),
        ("speed", ["nothing", "second", "third", "first"]),
    ],
)
def test_runs_are_sorted_and_the_best_comes_last(
    sort: str, order: list[str], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(storage, capsys, "--sort", sort) == order


def test_what_has_no_validation_comes_first(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(storage, capsys, "--sort", "validation")[2:] == ["second", "first"]
    assert names(storage, capsys) == names(storage, capsys, "--sort", "when")


def test_the_storage_path_is_a_flag_or_a_word(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for words in ([str(storage)], ["--storage_path", str(storage)], ["--storage-path", str(storage), str(storage)]):
        assert main(["runs", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1 and "b-first" in texts[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "--storage_path", "b"], "two storage paths"),
        (["--sort", "size"], "--sort size: when, name"),
        (["--watch", "--json"], "--watch is for people"),
        (["--watch"], "--watch needs a terminal"),
        (["--storage_path", "nowhere"], "nowhere: no such directory"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", *words]) == 2
    assert said in capsys.readouterr().err


def read_until(terminal: int, text: str, seconds: float = 60) -> str:
    seen, end = "", time.monotonic() + seconds
    while text not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536).decode()
    assert text in seen, seen
    return seen


def test_the_list_is_watched_until_ctrl_c(storage: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
    command = [sys.executable, "-m", "raymb", "runs", "--storage_path", str(storage), "--watch"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        read_until(ours, "Ctrl-C ends this")
        write_run(storage, "e-new", 40, 0.5, 0.4, 4000)
        read_until(ours, "e-new")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(ours)

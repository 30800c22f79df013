"""metrics.jsonl and TensorBoard's event files, over restarts."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raymb.telemetry.sinks import JsonLines, TensorBoard, read_metrics


def _train(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": loss}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_floats_keep_their_full_precision(tmp_path: Path) -> None:
    sink, values = JsonLines(tmp_path / "metrics.jsonl"), [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 1e-5]
    for step, value in enumerate(values, start=1):
        sink.write(_train(step, value))
    sink.close()
    assert [line["loss"] for line in _lines(tmp_path / "metrics.jsonl")] == values


def test_a_number_that_json_does_not_have_is_null(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    for value in (float("nan"), float("inf")):
        sink.write(_train(1, value))
    assert [line["loss"] for line in _lines(tmp_path / "metrics.jsonl")] == [None, None]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_restart_drops_later_lines_and_a_torn_last_one(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    sink = JsonLines(file)
    for step in (1, 2, 3):
        sink.write(_train(step))
    sink.write({"kind": "validation", "step": 2, "loss": 0.5})
    with open(file, "a") as stream:
        stream.write('{"kind": "train", "step": 2, "lo')
    JsonLines(file).restart_after(2)
    sink.write(_train(3, 9.0))
    assert [(line["kind"], line["step"], line["loss"]) for line in _lines(file)] == [
        ("train", 1, 1.0),
        ("train", 2, 1.0),
        ("validation", 2, 0.5),
        ("train", 3, 9.0),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_a_full_disk_cut_short_takes_no_other_with_it(tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own."""
    file = tmp_path / "metrics.jsonl"
    code = (
        "import resource, signal, sys; from pathlib import Path; from raymb.telemetry.sinks import JsonLines\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sink = JsonLines(Path(sys.argv[1]))\n"
        "for limit, step in ((-1, 1), (90, 2), (-1, 3)):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))\n"
        "    try: sink.write({'kind': 'train', 'step': step, 'time': 1.0, 'loss': 0.5})\n"
        "    except OSError as error: print(error.errno)\n"
    )
    words, env = [sys.executable, "-c", code, str(file)], {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    assert done.stdout == f"{errno.EFBIG}\n" and file.read_text().count("\n") == 3
    assert [one["step"] for one in read_metrics(file)] == [1, 3]


@pytest.mark.parametrize("line", ["not JSON", "[]", '{"kind": "train"}', '{"step": null}', ""])
def test_restart_drops_lines_that_are_no_records(tmp_path: Path, line: str) -> None:
    file = tmp_path / "metrics.jsonl"
    sink = JsonLines(file)
    sink.write(_train(1))
    file.write_text(file.read_text() + line + "\n")
    sink.restart_after(5)
    assert _lines(file) == [_train(1)]


def test_restart_without_a_file_makes_none(tmp_path: Path) -> None:
    JsonLines(tmp_path / "metrics.jsonl").restart_after(0)
    assert not list(tmp_path.iterdir())


def _scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    accumulator_module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = accumulator_module.EventAccumulator(str(directory)).Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_tensorboard_reads_the_scalars(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.write({"kind": "train", "step": 1, "loss": 2.5, "chip": "text is left out"})
    sink.write({"kind": "validation", "step": 1, "loss": 1.5})
    sink.close()
    assert _scalars(tmp_path, "train/loss") == [(1, 2.5)]
    assert _scalars(tmp_path, "validation/loss") == [(1, 1.5)]


def test_tensorboard_shows_a_repeated_step_once(tmp_path: Path) -> None:
    sink = TensorBoard(tmp_path)
    sink.restart_after(0)
    for step in (1, 2, 3):
        sink.write(_train(step, 1.0))
    sink.restart_after(1)
    for step in (2, 3):
        sink.write(_train(step, 4.0))
    sink.close()
    assert _scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 4.0), (3, 4.0)]


def test_tensorboard_without_a_start_writes_nothing(tmp_path: Path) -> None:
    TensorBoard(tmp_path / "tensorboard").close()
    assert not list(tmp_path.iterdir())

"""Where the driver writes metrics: metrics.jsonl, with its one reader, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from raymb.telemetry.events import objects_in
from raymb.telemetry.records import Line, Metric

_TRAIN = '{"kind": "train"'


class JsonLines:
    """metrics.jsonl: one object a line, floats in full precision.

    Args:
        file: kept when it exists; a resumed run appends to it.
    """

    name = "metrics.jsonl"

    def __init__(self, file: Path):
        self.file = file
        self.torn = False

    def restart_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again, so that each step stands in the file once."""
        if not self.file.exists():
            return
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if (of := _step_of(line)) is not None and of <= step]
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.file)

    def write(self, record: Metric) -> None:
        """A line that a full disk cut short is ended before the next one begins."""
        line = json.dumps({name: _in_json(value) for name, value in record.items()}) + "\n"
        line, self.torn = "\n" * self.torn + line, True
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(line)
        self.torn = False

    def close(self) -> None:
        pass


def read_metrics(file: Path, newest: int | None = None) -> list[Line]:
    """The records of a metrics.jsonl in its order; lines that are torn or not a record's are passed over.

    Args:
        newest: parse only so many of the train records, the last ones.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    lines = [line for line in lines if line.endswith("\n")]
    if newest is not None:
        steps = [index for index, line in enumerate(lines) if line.startswith(_TRAIN)]
        old = set(steps[: max(0, len(steps) - newest)])
        lines = [line for index, line in enumerate(lines) if index not in old]
    return [one for one in objects_in(lines) if _is_metric(one)]


def _is_metric(record: Line) -> bool:
    """Whether its readers can take it: an older raymb's may lack fields, but none is of another type."""
    kind, step, time = (record.get(name) for name in ("kind", "step", "time"))
    if not isinstance(kind, str) or type(step) is not int or not isinstance(time, int | float):
        return False
    if kind == "export":
        return isinstance(record.get("directories"), list)
    numbers = [value for name, value in record.items() if name != "kind"]
    return "loss" in record and all(value is None or isinstance(value, int | float) for value in numbers)


def _in_json(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> int | None:
    """The step of a whole line; None for one that a killed driver left torn."""
    if not line.endswith("\n"):
        return None
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def scalars(record: Metric) -> dict[str, float]:
    """The numbers of a record as KIND/FIELD."""
    return {
        f"{record['kind']}/{name}": value
        for name, value in record.items()
        if name not in ("kind", "step", "time") and isinstance(value, int | float)
    }


class TensorBoard:
    """Scalars under train/ and validation/, by step. A new event file begins with each start of the training."""

    name = "TensorBoard"

    def __init__(self, directory: Path):
        self.directory = directory
        self.writer: Any = None

    def restart_after(self, step: int) -> None:
        """Have TensorBoard leave out what older event files say of steps that will be done again."""
        self._open(step)

    def _open(self, step: int) -> Any:
        from tensorboardX import SummaryWriter

        self.close()
        # Without the suffix, a second file within a second would replace the first.
        self.writer = SummaryWriter(
            str(self.directory), flush_secs=10, purge_step=step + 1, filename_suffix=f".from-{step}"
        )
        return self.writer

    def write(self, record: Metric) -> None:
        if record["kind"] == "export":
            return
        writer = self.writer or self._open(record["step"] - 1)
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()

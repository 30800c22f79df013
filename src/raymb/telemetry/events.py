"""events.jsonl: when a driver started and ended, when its workers trained, failed and saved.

Lines are only ever appended, so that steps which are done again leave a trace here and not in metrics.jsonl.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raymb.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED
from raymb.telemetry.records import Line

_STATES = {EXIT_OK: "finished", EXIT_FAILED: "failed", EXIT_STOPPED: "stopped", EXIT_INTERRUPTED: "interrupted"}


def state_after(code: int) -> str:
    """A run's state after its driver ended with this exit code."""
    return _STATES.get(code, "failed")


class Events:
    """
    Args:
        file: kept when it exists; what a killed driver left torn in it becomes a line that readers pass over.
    """

    def __init__(self, file: Path):
        self.file = file
        with contextlib.suppress(FileNotFoundError):
            if not file.read_bytes().endswith(b"\n"):
                self._append("\n")

    def add(self, event: str, **fields: Any) -> None:
        """Append a line with the time. A full disk must not hide what a run ended with."""
        with contextlib.suppress(OSError):
            self._append(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")

    def _append(self, text: str) -> None:
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(text)


def read_lines(file: Path) -> list[Line]:
    """The objects of a JSON-lines file without torn lines; none where there is no file."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return objects_in(text.splitlines())


def objects_in(lines: Iterable[str]) -> list[Line]:
    """The JSON objects among lines; others are passed over."""
    return [record for line in lines if (record := _object(line)) is not None]


def _object(line: str) -> Line | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) else None

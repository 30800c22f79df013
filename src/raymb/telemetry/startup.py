"""startup.json: where the seconds go from the command to the end of its first step, phase by phase."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from raymb.storage.files import write_atomically
from raymb.telemetry.records import Began

COMMAND, ROWS, RAY, LAYOUT, PLACES = (
    "command, imports and plan",
    "rows",
    "Ray",
    "layout, resources and run directory",
    "workers placed and started",
)
"""The driver's phases."""
JOINED, IMPORTS, MODEL, OPTIMIZER, VALIDATION, FIRST_STEP = (
    "process group",
    "worker imports",
    "model built and weights loaded",
    "optimizer and data",
    "validation before the first step",
    "first step",
)
"""Those of rank 0, on the clock of its machine."""

_begun: list[tuple[str, float]] = []


def command_begins(when: float) -> None:
    """The clock starts: a process may give one command after another."""
    _begun[:] = [(COMMAND, when)]


def begin(phase: str, when: float | None = None) -> None:
    """A phase begins, and the one before it ends. One that comes again, as after a failure, begins only once."""
    if all(phase != name for name, _ in _begun):
        _begun.append((phase, time.time() if when is None else when))


def began(phase: str, when: float | None = None) -> Began:
    """Of a rank: the record that tells the driver."""
    return {"kind": "began", "phase": phase, "time": time.time() if when is None else when}


def write(file: Path, step: int, when: float) -> None:
    """The first step of the command has ended. Does nothing where the start was not followed."""
    if not _begun or _begun[0][0] != COMMAND:
        return
    ends = [*(began for _, began in _begun[1:]), when]
    phases = {name: round(end - began, 3) for (name, began), end in zip(_begun, ends, strict=True)}
    whole = round(when - _begun[0][1], 3)
    _begun.clear()
    write_atomically(file, json.dumps({"step": step, "seconds": whole, "phases": phases}, indent=2) + "\n")


def process_began() -> float:
    """When this process was started, in seconds since 1970."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))

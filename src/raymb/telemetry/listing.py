"""The table of `raymb runs`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from raymb.credentials import redacted
from raymb.errors import SpecError
from raymb.storage.remote import is_uri
from raymb.telemetry.charts import short

_STYLES = {"running": "cyan", "finished": "green", "failed": "red", "killed": "red"}


def print_runs(lines: list[dict[str, Any]], storage: str) -> None:
    """
    Args:
        lines: of run_record.summary.
    """
    if not lines:
        print(f"no runs in {storage}")
        return
    Console(highlight=False).print(_table(lines))


_KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "when": lambda line: line["time"],
    "name": lambda line: line["name"],
    "state": lambda line: line["state"],
    "step": lambda line: line["step"],
    "loss": lambda line: None if line["loss"] is None else -line["loss"],
    "validation": lambda line: None if line["best_validation_loss"] is None else -line["best_validation_loss"],
    "speed": lambda line: line["tokens_per_second_per_worker"],
}


def in_order(lines: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """The newest, furthest, fastest or lowest loss last; first those of which it is not known, or no number.

    Args:
        lines: of run_record.summary.
        sort: of _KEYS.
    """

    def key(line: dict[str, Any]) -> tuple[bool, Any]:
        value = _KEYS[sort](line)
        known = value is not None and value == value  # NaN is no number
        return known, value if known else 0

    return sorted(lines, key=key)


_EVERY = {False: 2.0, True: 15.0}
"""Seconds between two looks: at a directory, at a URI."""


def watch_runs(listed: Callable[[], list[dict[str, Any]]], storage: str) -> None:
    """Show the list, and again what has changed, until Ctrl-C. Of more runs than the terminal has lines the last ones.

    Raises:
        SpecError: standard output is no terminal.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        raise SpecError("--watch needs a terminal", "leave it out, or take --json")
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            lines = listed()[-max(console.height - 3, 1) :]
            what = _table(lines) if lines else f"no runs in {redacted(storage)}"
            live.update(Group(what, f"[dim]{time.strftime('%H:%M:%S')}, Ctrl-C ends this[/]"), refresh=True)
            time.sleep(_EVERY[is_uri(storage)])


def _table(lines: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state"):
        table.add_column(name, overflow="fold")
    for name in ("step", "loss", "best validation", "tokens/s a worker", "when"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    best = line["best_validation_loss"]
    state = line["state"]
    return (
        line["name"],
        f"[{_STYLES[state]}]{state}[/]" if state in _STYLES else state,
        f"{line['step']:,}/{line['train_iters']:,}" if line["train_iters"] else f"{line['step']:,}",
        short(line["loss"]),
        "-" if best is None else f"{short(best)} at {line['best_validation_step']:,}",
        short(line["tokens_per_second_per_worker"]),
        "-" if line["time"] is None else ago(time.time() - line["time"]),
    )


def ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "now" if seconds < 10 else f"{seconds:.0f} s ago"

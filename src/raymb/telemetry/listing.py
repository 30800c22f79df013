"""The table of `raymb runs`."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.table import Table

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
    table = Table(box=None, pad_edge=False)
    for name in ("run", "state"):
        table.add_column(name, overflow="fold")
    for name in ("step", "loss", "best validation", "tokens/s a worker", "when"):
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*_cells(line))
    Console(highlight=False).print(table)


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

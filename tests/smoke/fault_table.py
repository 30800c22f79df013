"""The table of docs/faults.md. RAYMB_FAULT_TABLE=1 has a test run write it, whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"


@dataclass
class Row:
    """A line of the table: what happened, how the run ended, seconds to the next step, steps lost."""

    case: str
    outcome: str
    seconds: str = "-"
    lost: str = "-"


def write(rows: list[Row]) -> None:
    """The whole table anew: a case that was not run, or has failed, must not keep a former row."""
    TABLE.write_text(render(rows), encoding="utf-8")


def render(rows: list[Row]) -> str:
    lines = [
        "# Faults",
        "",
        f"{len(rows)} cases, written by `RAYMB_FAULT_TABLE=1 scripts/test -m fault`: real runs of a tiny model on CPU",
        "workers (2 cores), in which real faults happen. Bit-exact: every loss, gradient norm, validation and exported",
        "weight is that of a run with no fault. Seconds: from the failure to training again. Steps lost: done again",
        "after the failure.",
        "",
        "| case | outcome | seconds | steps lost |",
        "|---|---|---|---|",
        *(f"| {row.case} | {row.outcome} | {row.seconds} | {row.lost} |" for row in rows),
    ]
    return "\n".join([*lines, ""])

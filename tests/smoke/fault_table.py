"""The table of docs/faults.md: each test run writes the rows of the cases that it ran."""

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


def update(rows: list[Row]) -> None:
    """Put rows into the table, in the place of former ones of the same cases."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]
    merged = {row.case: row for row in (*(Row(*cell) for cell in cells), *rows)}
    TABLE.write_text(render(list(merged.values())), encoding="utf-8")


def render(rows: list[Row]) -> str:
    lines = [
        "# Faults",
        "",
        "Written by `scripts/test --all tests/smoke/test_faults.py tests/smoke/test_nodes.py`: real runs of a tiny",
        "model on CPU workers (2 cores), in which real faults happen. Bit-exact: every loss, gradient norm, validation",
        "and exported weight is that of a run with no fault. Seconds: from the failure to training again. Steps lost:",
        "done again after the failure.",
        "",
        "| case | outcome | seconds | steps lost |",
        "|---|---|---|---|",
        *(f"| {row.case} | {row.outcome} | {row.seconds} | {row.lost} |" for row in rows),
    ]
    return "\n".join([*lines, ""])

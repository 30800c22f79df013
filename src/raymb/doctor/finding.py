"""What a check says, on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raymb.credentials import redacted

Status = Literal["ok", "warning", "error"]
_COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}

MOST_NAMED = 8
"""Entries of a long list that a finding names."""


@dataclass(frozen=True)
class Finding:
    """
    Args:
        area: environment, gpus, storage, hub, cluster or all-reduce.
        name: what was looked at.
        status: an error means that a run would fail; a warning that it might, or that nobody could tell.
        said: what was found: the values and the rule.
        fix: what to do about it; "" where nothing is wrong.
    """

    area: str
    name: str
    status: Status
    said: str
    fix: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "said", redacted(self.said))


def count(findings: Iterable[Finding], status: Status) -> int:
    return sum(finding.status == status for finding in findings)


def as_object(findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings as one JSON-able object."""
    return {
        "errors": count(findings, "error"),
        "warnings": count(findings, "warning"),
        "findings": [asdict(finding) for finding in findings],
    }


def listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


class Printer:
    """Prints findings as they come, under the name of their area.

    Args:
        console: rich's; to standard output.
    """

    def __init__(self, console: Any):
        self.console, self.area = console, ""

    def show(self, finding: Finding) -> None:
        from rich.text import Text

        if finding.area != self.area:
            self.area = finding.area
            self.console.print(Text(self.area, "bold"))
        status = Text(f"  {finding.status:<8}", _COLOURS[finding.status])
        words = Text(f"{finding.name}: {finding.said}" + (f"\nfix: {finding.fix}" if finding.fix else ""))
        lines = words.wrap(self.console, max(40, self.console.width - len(status) - 1))
        for number, line in enumerate(lines):
            left = status if number == 0 else Text(" " * len(status))
            line.rstrip()
            self.console.print(Text.assemble(left, " ", line), highlight=False)

    def conclude(self, findings: Sequence[Finding]) -> None:
        errors, warnings = (count(findings, status) for status in ("error", "warning"))
        if errors:
            self.console.print(f"{plural(errors, 'error')}, {plural(warnings, 'warning')}: a run would fail here")
        else:
            self.console.print(f"ready to train; {plural(warnings, 'warning')}" if warnings else "ready to train")


def plural(number: int, word: str) -> str:
    """`1 node`, `3 nodes`."""
    return f"{number} {word}" + ("" if number == 1 else "s")

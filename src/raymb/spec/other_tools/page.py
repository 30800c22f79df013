"""The tables of docs/coming-from.md. A line `<!-- table: NAME -->` stands before each."""

from __future__ import annotations

import re
from collections.abc import Mapping

from raymb.spec.other_tools import TABLES
from raymb.spec.other_tools.record import Key, Tool
from raymb.spec.sections import SECTION_OF_FLAG

_TABLE = re.compile(r"(?P<mark><!-- table: (?P<name>[\w-]+) -->\n)(?:\|.*\n)*")


def with_tables(page: str) -> str:
    """The page with its tables as the code has them."""
    return _TABLE.sub(lambda match: match["mark"] + table(TABLES[match["name"]]), page)


def tables_of(page: str) -> list[str]:
    """The names of its tables."""
    return [match["name"] for match in _TABLE.finditer(page)]


def table(tool: Tool) -> str:
    lines = [f"| {tool.title} | raymb | |", "|---|---|---|", *map(_row, tool.keys)]
    return "".join(f"{line}\n" for line in lines)


def _row(row: Key) -> str:
    theirs = ", ".join(f"`{name}`" for name in row.theirs)
    ours = ", ".join(f"`{SECTION_OF_FLAG[flag]}.{flag}`" for flag in dict.fromkeys(row.flags)) or "-"
    notes = [row.note, _words(row.value)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (theirs, ours, "; ".join(filter(None, notes)))) + " |"


def _words(value: object) -> str:
    """What the words of a table of values are called here, where that is something else."""
    if not isinstance(value, Mapping):
        return ""
    pairs = {str(word).lower(): ours for word, ours in value.items()}
    return ", ".join(f"`{word}` is `{ours}`" for word, ours in pairs.items() if word != ours)

"""The rows that tests of real faults leave for docs/faults.md, which scripts/fault-table writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pytest

ROWS = "rows of docs/faults.md"


@dataclass
class Row:
    """A line of the table: what happened, how the run ended, seconds to the next step, steps lost."""

    case: str
    outcome: str
    seconds: str = "-"
    lost: str = "-"


@pytest.fixture
def fault_table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """A test that asks for it adds its rows."""
    rows: list[Row] = []
    yield rows
    request.node.user_properties.append((ROWS, json.dumps([asdict(row) for row in rows])))

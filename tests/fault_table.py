"""The table of docs/faults.md, made by tests with the fixture `fault_table`: real runs and processes with real faults.

    RAYMB_FAULT_TABLE=/tmp/rows scripts/test -m fault [a part of the tests]    as often as it takes
    RAYMB_FAULT_TABLE=/tmp/rows scripts/test -m fault --collect-only           writes the page

Each test leaves its rows in the directory when it passes, and takes them away when it begins: a case that was not run,
or has failed, has none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
DIRECTORY = os.environ.get("RAYMB_FAULT_TABLE")


@dataclass
class Row:
    """A line of the table: what happened, how the run ended, seconds to the next step, steps lost."""

    case: str
    outcome: str
    seconds: str = "-"
    lost: str = "-"


@pytest.fixture
def fault_table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    if DIRECTORY:
        _file(request.node).unlink(missing_ok=True)
    rows: list[Row] = []
    yield rows
    for row in rows:
        print(f"\n{row.case:<60} {row.outcome:<60} {row.seconds:>6} {row.lost:>3}", end="")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _has_rows(item):
            item.add_marker("fault")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report = yield
    if DIRECTORY and report.passed and report.when == "call" and _has_rows(item):
        rows = item.funcargs["fault_table"]  # type: ignore[attr-defined]
        assert rows, "a test that asks for the table has a row in it"
        file = _file(item)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([asdict(row) for row in rows]))
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    if DIRECTORY and session.config.option.collectonly:
        tests = [item for item in session.items if _has_rows(item)]
        passed = [_file(item) for item in tests if _file(item).exists()]
        rows = [Row(**fields) for file in passed for fields in json.loads(file.read_text())]
        PAGE.write_text(page(rows, len(passed), len(tests)), encoding="utf-8")


def page(rows: Sequence[Row], passed: int, tests: int) -> str:
    lines = [
        "# Faults",
        "",
        f"{len(rows)} cases of {passed} tests that passed, of {tests}; written by `scripts/test -m fault`",
        "(tests/fault_table.py). Real runs of a tiny model on CPU workers (2 cores), and real processes, in which real",
        "faults happen. Bit-exact: every loss, gradient norm, validation and exported weight is that of a run with no",
        "fault. Seconds: from the failure to training again, or what the row names. Steps lost: done again after the",
        "failure.",
        "",
        "| case | outcome | seconds | steps lost |",
        "|---|---|---|---|",
        *(f"| {row.case} | {row.outcome} | {row.seconds} | {row.lost} |" for row in rows),
    ]
    return "\n".join([*lines, ""])


def _has_rows(item: pytest.Item) -> bool:
    return "fault_table" in getattr(item, "fixturenames", ())


def _file(item: pytest.Item) -> Path:
    return Path(DIRECTORY or "", re.sub(r"[^A-Za-z0-9.-]+", "-", item.nodeid) + ".json")

"""`python scripts/fault_table.py ROWS [PYTEST'S ARGUMENTS]`: runs the tests with the fixture `fault_table` (real runs
and processes with real faults) and writes docs/faults.md with the rows of all that have passed, now or before.

Each test leaves its rows in the directory ROWS when it passes, and takes them away when it begins: a case that was not
run, or has failed, has none.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"


class Faults:
    """A plugin of pytest that runs no other tests."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.tests: list[str] = []
        self.passed: set[str] = set()

    def file_of(self, test: str) -> Path:
        return self.directory / (re.sub(r"[^A-Za-z0-9.-]+", "-", test) + ".json")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        others = [item for item in items if "fault_table" not in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
        self.tests = [item.nodeid for item in items]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.file_of(nodeid).unlink(missing_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from tests.fault_table import ROWS

        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        if report.when == "teardown" and report.nodeid in self.passed:
            rows = json.loads(str(dict(report.user_properties)[ROWS]))
            assert rows, f"{report.nodeid} asks for the table and has no row in it"
            self.file_of(report.nodeid).write_text(json.dumps(rows))


def main(directory: Path, arguments: Sequence[str]) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    everything = Faults(directory)
    if pytest.main(["--collect-only", "-qq", "-m", "not gpu", "tests"], plugins=[everything]):
        return 1
    code = pytest.main(["-m", "not gpu", *arguments], plugins=[Faults(directory)])
    PAGE.write_text(page(directory, everything), encoding="utf-8")
    return int(code)


def page(directory: Path, everything: Faults) -> str:
    passed = [file for file in map(everything.file_of, everything.tests) if file.exists()]
    rows = [row for file in passed for row in json.loads(file.read_text())]
    lines = [
        "# Faults",
        "",
        f"{len(rows)} cases of {len(passed)} tests that passed, of {len(everything.tests)}; written by",
        "`scripts/fault-table`. Real runs of a tiny model on CPU workers (2 cores), and real processes, in which real",
        "faults happen. Bit-exact: every loss, gradient norm, validation and exported weight is that of a run with no",
        "fault. Seconds: from the failure to training again, or what the row names. Steps lost: done again after the",
        "failure.",
        "",
        "| case | outcome | seconds | steps lost |",
        "|---|---|---|---|",
        *(f"| {row['case']} | {row['outcome']} | {row['seconds']} | {row['lost']} |" for row in rows),
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))

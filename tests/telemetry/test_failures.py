"""The page of a failure and what the console says, from the records that arrive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raymb.telemetry.failures import Failure, Failures, console_lines, render, resumed_line


def _status(rank: int, step: int, phase: str = "") -> dict[str, Any]:
    return {"kind": "rank", "rank": rank, "node": f"node-{rank}", "in": phase or "step", "step": step}


def _record(rank: int | None = 1, **more: Any) -> dict[str, Any]:
    died = {"kind": "failure", "time": 1700000000.0, "rank": rank, "text": "ActorDiedError: it died", "died": True}
    workers = {"0": "RuntimeError: Connection reset by peer", "1": "ActorDiedError: it died"}
    return {**died, "workers": workers, "restarts": True, "why": "", "failures": 1, "max_failures": 3, **more}


def _raised(text: str, **more: Any) -> dict[str, Any]:
    return _record(text=text, died=False, **more)


def _hang(rank: int, others: dict[Any, str] | None = None, phase: str = "step 8") -> dict[str, Any]:
    return {"kind": "hang", "rank": rank, "in": phase, "others": others or {}}


def _cells(page: str) -> dict[str, str]:
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return {
        name.strip(): value.strip() for _, name, value, _ in (line.split("|") for line in lines if "\\|" not in line)
    }


@pytest.fixture
def failures(tmp_path: Path) -> Failures:
    (tmp_path / "logs").mkdir()
    return Failures(tmp_path / "failures", tmp_path / "logs")


def _log(failures: Failures, rank: int, text: str) -> None:
    with open(failures.logs / f"worker-{rank:05d}.log", "a") as file:
        file.write(text)


def test_a_page_from_a_death_to_the_training_again(failures: Failures) -> None:
    for step in (6, 7):
        for rank in (0, 1):
            failures.heard(_status(rank, step))
    _log(failures, 0, "of rank 0\n")
    _log(failures, 1, "".join(f"line {number}\n" for number in range(30)))
    failure = failures.failed(_record())
    page = failures.page(failure).read_text()
    assert page.startswith("# Failure 1\n\n| | |\n|---|---|\n| time | 2023-11-1")
    cells = _cells(page)
    assert cells["rank"] == "1" and cells["node"] == "node-1" and cells["phase"] == "step 8"
    assert cells["what"] == "the process died without an exception (SIGKILL, or out of memory)"
    assert cells["last finished step"] == "7" and cells["decision"] == "start again (failures: 1 of at most 3)"
    assert [cells[name] for name in ("resumed from", "steps lost", "seconds to training again")] == ["-", "-", "-"]
    assert "## What the other ranks said\n\n- rank 0: RuntimeError: Connection reset by peer\n\n" in page
    assert page.endswith("```\n" + "".join(f"line {number}\n" for number in range(10, 30)) + "```\n")
    assert "of rank 0" not in page

    failures.heard(_status(0, 0, "loading"))  # of the next start
    assert failures.resumed(5) is failure
    cells = _cells(failures.page(failure).read_text())
    assert (cells["resumed from"], cells["steps lost"], cells["phase"]) == ("step 5", "2", "step 8")
    assert 0 <= float(cells["seconds to training again"]) < 60
    assert failures.resumed(5) is None, "a page ends once"


def test_a_failure_that_is_followed_by_another_before_any_step_counts_to_the_end(failures: Failures) -> None:
    """A node went, and the first try to start again found no room: the steps were lost by the first."""
    failures.heard(_status(1, 7))
    first = failures.failed(_record())
    second = failures.failed(_record(None, text="WorkerGroupStartupTimeoutError: no room", died=False, workers={}))
    first.began -= 60
    assert failures.resumed(5) is first
    pages = [_cells(failures.page(failure).read_text()) for failure in (first, second)]
    assert [page["resumed from"] for page in pages] == ["step 5", "step 5"]
    assert [page["steps lost"] for page in pages] == ["2", "0"]
    assert float(pages[0]["seconds to training again"]) >= 60 > float(pages[1]["seconds to training again"])
    assert failures.resumed(5) is None


def test_the_console_says_the_same_in_five_lines(failures: Failures) -> None:
    failures.heard(_status(1, 7))
    _log(failures, 1, "something\nthe last line\n\n")
    failure = failures.failed(_raised("RuntimeError: CUDA error"))
    page = failures.page(failure)
    assert console_lines(failure, page) == [
        "failure 1: rank 1 on node-1, step 8: RuntimeError: CUDA error",
        "  last log line  the last line",
        "  decision       start again (failures: 1 of at most 3)",
        f"  page           {page}",
    ]
    failures.resumed(5)
    assert resumed_line(failure) == "  resumed        from step 5 after 0 s, 2 steps to do again"


def test_a_long_log_line_is_cut_on_the_console_only(failures: Failures) -> None:
    _log(failures, 1, "x" * 500)
    failure = failures.failed(_record())
    assert console_lines(failure, Path("1.md"))[1] == f"  last log line  {'x' * 160}"
    assert "x" * 500 in failures.page(failure).read_text()


def test_page_numbers_continue_over_failures_and_starts_of_the_driver(failures: Failures) -> None:
    assert [failures.failed(_record()).number for _ in range(2)] == [1, 2]
    (failures.directory / "notes.md").write_text("mine")
    (failures.directory / "10.md").write_text("of an earlier start")
    again = Failures(failures.directory, failures.logs)
    assert again.failed(_record()).number == 11
    assert (failures.directory / "10.md").read_text() == "of an earlier start"
    assert (failures.directory / "1.md").read_text().startswith("# Failure 1\n")


def test_a_run_without_a_failure_has_no_directory(failures: Failures) -> None:
    failures.heard(_status(0, 1))
    assert failures.resumed(0) is None
    assert not failures.directory.exists()


def test_giving_up_says_why(failures: Failures) -> None:
    futile = failures.failed(_raised("ValueError: x", restarts=False, why="it would come again"))
    assert _cells(render(futile))["decision"] == "give up: it would come again"
    used_up = failures.failed(_record(restarts=False, failures=4))
    assert (
        console_lines(used_up, Path("2.md"))[2]
        == "  decision       give up: the 3 restarts (--max_failures) are used up"
    )
    assert failures.resumed(0) is None, "nothing resumes"


# Hangs


def test_ranks_that_waited_for_a_stopped_one(failures: Failures) -> None:
    """Those who said that they hang died; the one to blame is the one that said nothing."""
    for rank in range(3):
        failures.heard(_status(rank, 7))
    _log(failures, 1, "rank 1 was here\n")
    for rank in (0, 2):
        failures.heard(_hang(rank, {1: "stopped"}))
    failure = failures.failed(_record(rank=0, workers={str(rank): "ActorDiedError: it died" for rank in range(3)}))
    page = failures.page(failure).read_text()
    cells = _cells(page)
    assert (cells["rank"], cells["node"]) == ("1", "node-1")
    assert cells["what"] == "no progress in step 8 (its process is stopped)"
    assert "- rank 0: ActorDiedError" in page and "- rank 1:" not in page and "rank 1 was here" in page
    assert "rank 1 on node-1, step 8: no progress" in console_lines(failure, Path("1.md"))[0]


@pytest.mark.parametrize("others", [{}, {"2": "gone"}])
def test_ranks_that_waited_for_each_other(failures: Failures, others: dict[str, str]) -> None:
    failures.heard(_status(0, 7))
    failures.heard(_hang(0, others))
    failure = failures.failed(_record(rank=0))
    assert failure.rank == 0
    assert failure.what == "no progress in step 8 (stacks in logs/)"


def test_a_hang_belongs_to_its_start(failures: Failures) -> None:
    failures.heard(_hang(0, {1: "stopped"}))
    failures.failed(_record(rank=0))
    failures.resumed(0)
    assert failures.failed(_raised("RuntimeError: another one", rank=2)).what == "RuntimeError: another one"


# What a process that died has left in its log

CRASHES = """
import faulthandler, os, signal, sys, threading, time
def waits(depth):
    time.sleep(60) if depth == 0 else waits(depth - 1)
for _ in range(8):
    threading.Thread(target=waits, args=(8,), daemon=True).start()
time.sleep(0.3)
faulthandler.enable(file=2)
"""


def _crash(failures: Failures, rank: int, how: str) -> None:
    """A real process that dies, with its output in the log of a rank."""
    with open(failures.logs / f"worker-{rank:05d}.log", "ab") as file:
        subprocess.run([sys.executable, "-c", CRASHES + how], stdout=file, stderr=file, check=False, timeout=60)


def test_a_crash_in_c_is_named_however_long_the_stacks_behind_it_are(failures: Failures) -> None:
    _crash(failures, 1, "os.kill(os.getpid(), signal.SIGSEGV)")
    failure = failures.failed(_record())
    assert len(failure.log) > 60
    assert failure.what == "Segmentation fault"
    assert len(failure.log_tail) == 20


def test_the_timer_of_a_hang_is_named(failures: Failures) -> None:
    """The last resort of raymb.rank.hang, where code in C holds the interpreter."""
    _crash(failures, 1, "faulthandler.dump_traceback_later(0.5, exit=True, file=2)\ntime.sleep(60)")
    assert failures.failed(_record()).what == "Timeout (0:00:00.500000)"


def test_what_an_earlier_start_left_is_not_what_happened_now(failures: Failures) -> None:
    _log(failures, 1, "Fatal Python error: Aborted\n")
    assert failures.failed(_record()).what == "Aborted"
    _log(failures, 1, "started again\n")
    second = failures.failed(_record())
    assert second.what.startswith("the process died without an exception") and second.log_tail == ["started again"]
    _log(failures, 1, "Fatal Python error: Bus error\n")
    later = Failures(failures.directory, failures.logs)  # the same command, on another day
    assert later.failed(_record()).what.startswith("the process died without an exception")


def test_a_rank_that_raised_is_not_said_to_have_crashed(failures: Failures) -> None:
    _log(failures, 1, "Fatal Python error: Aborted\n")
    assert failures.failed(_raised("RuntimeError: x")).what == "RuntimeError: x"


def test_a_log_that_is_missing_or_no_text(failures: Failures) -> None:
    failure = failures.failed(_record())
    assert failures.page(failure).read_text().endswith("## Last lines of rank 1's log\n\n```\n(nothing)\n```\n")
    assert console_lines(failure, Path("1.md"))[1] == "  last log line  (nothing)"
    (failures.logs / "worker-00001.log").write_bytes(b"\xff\xfe before\nafter\n")
    assert failures.failed(_record()).log_tail[1] == "after"


# Pages without a rank


def test_a_preemption(failures: Failures) -> None:
    for rank in range(2):
        failures.heard(_status(rank, 12, "exporting"))
    stopped = {"text": "stopped after step 12 for preemption", "died": False, "workers": {}, "failures": 0}
    failure = failures.failed(_record(None, **stopped))
    page = failures.page(failure).read_text()
    cells = _cells(page)
    assert (cells["rank"], cells["node"], cells["phase"]) == ("none", "-", "after step 12")
    assert cells["what"] == "stopped after step 12 for preemption"
    assert cells["decision"] == "start again (failures: 0 of at most 3)"
    assert page.endswith("## What the other ranks said\n\n- none\n"), "nobody's log"
    assert console_lines(failure, Path("1.md"))[0] == (
        "failure 1: the run, after step 12: stopped after step 12 for preemption"
    )
    failures.resumed(12)
    assert _cells(failures.page(failure).read_text())["steps lost"] == "0"


def test_workers_that_did_not_start(failures: Failures) -> None:
    failure = failures.failed(_record(None, text="WorkerGroupStartupTimeoutError: no room", died=False, workers={}))
    assert failure.where() == ("unknown", "starting")
    assert (
        console_lines(failure, Path("1.md"))[0]
        == "failure 1: the run, starting: WorkerGroupStartupTimeoutError: no room"
    )
    assert _cells(failures.page(failure).read_text())["last finished step"] == "0"


def test_a_rank_that_died_before_it_said_anything(failures: Failures) -> None:
    failures.heard(_status(0, 0, "loading"))
    assert failures.failed(_record()).where() == ("unknown", "starting")


def test_resuming_from_a_later_step_than_was_known_loses_nothing(failures: Failures) -> None:
    """A status may be late; a checkpoint is not."""
    failures.heard(_status(1, 7))
    failure = failures.failed(_record())
    failures.resumed(8)
    assert failure.lost == 0


def test_a_table_cell_holds_what_would_end_it() -> None:
    failure = Failure(1, _raised("RuntimeError: shapes [2|3] differ"), {}, 0, [], [])
    assert "| what | RuntimeError: shapes [2\\|3] differ |\n" in render(failure)

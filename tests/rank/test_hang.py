"""Processes that make no progress. Each is a real one, because the watch ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymb.rank import hang
from raymb.rank.hang import HangWatch
from raymb.rank.progress import Progress

SOURCES = Path(__file__).parents[2] / "src"
WATCHED = """
import ctypes, faulthandler, json, sys, threading, time
from pathlib import Path
from raymb.rank import hang
from raymb.rank.progress import Progress

hang._SECONDS_FOR_OTHERS = 0.3
out, timeout, peers = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])

def tell(others):
    (out / "told.json").write_text(json.dumps(others))

def waits_beside():
    time.sleep(60)

def waits_for_nobody():
    time.sleep(60)

progress = Progress()
progress.enter("step")
progress.finished(11)
threading.Thread(target=waits_beside, daemon=True).start()
watch = hang.HangWatch(
    progress, timeout, out / "logs" / "stacks.txt", lambda: {int(rank): pid for rank, pid in peers.items()}, tell
)
"""


def _run(program: str, out: Path, timeout: float, peers: dict[int, int] | None = None) -> subprocess.CompletedProcess:
    words = [sys.executable, "-c", WATCHED + program, str(out), str(timeout), json.dumps(peers or {})]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen]]:
    """Starts processes that sleep."""
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        started.append(subprocess.Popen(["sleep", "120"]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_rank_that_waits_for_ever_ends_with_its_stacks(tmp_path: Path) -> None:
    began = time.monotonic()
    done = _run("waits_for_nobody()", tmp_path, 1.5)
    assert done.returncode == -signal.SIGKILL
    assert 1.5 < time.monotonic() - began < 30
    stacks = (tmp_path / "logs" / "stacks.txt").read_text()
    assert stacks.startswith("no progress for 1.5 s in step 12\n")
    assert "in waits_for_nobody" in stacks and "in waits_beside" in stacks, "all threads"
    assert json.loads((tmp_path / "told.json").read_text()) == {}


def test_a_stopped_peer_is_named_and_killed_and_others_are_left_alone(
    tmp_path: Path, sleeper: Callable[[], subprocess.Popen]
) -> None:
    stopped, well, gone, dead = (sleeper() for _ in range(4))
    stopped.send_signal(signal.SIGSTOP)
    gone.kill()
    gone.wait()
    dead.kill()  # a zombie until the fixture waits for it
    done = _run("waits_for_nobody()", tmp_path, 1, {0: stopped.pid, 2: well.pid, 3: gone.pid, 4: dead.pid})
    assert done.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "told.json").read_text()) == {"0": "stopped", "3": "gone", "4": "gone"}
    assert stopped.wait(10) == -signal.SIGKILL
    assert well.poll() is None


def test_a_peer_that_continues_in_time_is_not_killed(tmp_path: Path, sleeper: Callable[[], subprocess.Popen]) -> None:
    """What is stopped for a moment (a debugger, a suspended machine) may have continued when the others are through."""
    peer = sleeper()
    peer.send_signal(signal.SIGSTOP)
    program = f"hang._SECONDS_FOR_OTHERS = 2\nimport os\nthreading.Timer(2, os.kill, ({peer.pid}, 18)).start()\n"
    assert signal.SIGCONT == 18
    done = _run(program + "waits_for_nobody()", tmp_path, 1, {1: peer.pid})
    assert done.returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "told.json").read_text()) == {"1": "stopped"}
    assert peer.poll() is None


PROGRESS = {
    "forward passes": "for _ in range(15):\n    time.sleep(0.2)\n    progress.beat()",
    "steps": "for step in range(15):\n    time.sleep(0.2)\n    progress.finished(step)",
    "a written file": "for _ in range(15):\n    time.sleep(0.2)\n    open('/dev/null', 'wb').write(b'.' * 400000)",
    "a read file": "for _ in range(15):\n    time.sleep(0.2)\n    open('/dev/zero', 'rb').read(400000)",
    "another rank that is waited for": "with progress.waiting():\n    time.sleep(3)",
    "phases": "for number in range(15):\n    time.sleep(0.2)\n    progress.enter(('saving', 'step')[number % 2])",
}


@pytest.mark.parametrize("program", PROGRESS.values(), ids=PROGRESS)
def test_a_rank_that_makes_progress_lives_on(program: str, tmp_path: Path) -> None:
    done = _run(program, tmp_path, 1)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_moves_bytes_slower_than_any_transfer_may_be_is_none_that_makes_progress(tmp_path: Path) -> None:
    """Logs, and the pipes of other threads."""
    program = "for _ in range(50):\n    time.sleep(0.2)\n    open('/dev/null', 'wb').write(bytes(100000))"
    assert _run(program, tmp_path, 1).returncode == -signal.SIGKILL


def test_a_wait_that_is_over_counts_from_its_end(tmp_path: Path) -> None:
    program = "with progress.waiting():\n    time.sleep(2)\nwaits_for_nobody()"
    began = time.monotonic()
    assert _run(program, tmp_path, 1).returncode == -signal.SIGKILL
    assert time.monotonic() - began > 3


def test_after_close_it_watches_no_more(tmp_path: Path) -> None:
    done = _run("time.sleep(0.5)\nwatch.close()\ntime.sleep(2)", tmp_path, 1)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_rank_whose_code_in_c_holds_the_interpreter_ends_too(tmp_path: Path) -> None:
    """No thread of Python's runs then; only the time that the timer in C has beyond --hang_timeout is changed here."""
    program = (
        "later = faulthandler.dump_traceback_later\n"
        "faulthandler.dump_traceback_later = lambda seconds, **settings: later(seconds - 60, **settings)\n"
        "time.sleep(0.5)\n"
        "def holds_the_interpreter():\n    ctypes.PyDLL(None).sleep(60)\n"
        "holds_the_interpreter()"
    )
    done = _run(program, tmp_path, 2)
    assert done.returncode == 1
    assert done.stderr.startswith("Timeout (0:00:02)!") and "in holds_the_interpreter" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_timeout_is_no_watch(tmp_path: Path) -> None:
    watch = HangWatch(Progress(), 0, tmp_path / "stacks.txt", dict, lambda others: None)
    assert not watch.thread.is_alive()
    watch.close()


def test_the_timer_in_c_is_off_after_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has trained may live on for an hour; the timer would end it."""
    calls: list[str] = []
    arming = threading.Event()

    def arm(*args: Any, **settings: Any) -> None:
        arming.set()
        time.sleep(0.3)
        calls.append("on")

    monkeypatch.setattr(
        hang,
        "faulthandler",
        SimpleNamespace(dump_traceback_later=arm, cancel_dump_traceback_later=lambda: calls.append("off")),
    )
    watch = HangWatch(Progress(), 600, tmp_path / "stacks.txt", dict, lambda others: None)
    assert arming.wait(10)
    watch.close()
    assert calls == ["on", "off"]
    assert not watch.thread.is_alive()

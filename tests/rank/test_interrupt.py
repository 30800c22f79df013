"""Ctrl-C and SIGTERM: real signals to this process, or to one of its own where they end it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymb.rank.interrupt import Interrupts

SOURCES = Path(__file__).parents[2] / "src"
BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    install, before = signal.signal, {number: signal.getsignal(number) for number in BOTH}
    yield
    assert signal.signal is install
    assert {number: signal.getsignal(number) for number in BOTH} == before


class Train:
    """Ray Train as far as signals go: it installs a handler of SIGINT when the training begins."""

    def __init__(self, grace: float, trains: bool = True):
        self.asked = 0
        self.aborted: list[float] = []
        self.trains = trains
        self.interrupts = Interrupts(self._ask, grace)

    def _ask(self) -> bool:
        self.asked += 1
        return self.trains

    def begin(self) -> None:
        signal.signal(signal.SIGINT, lambda number, frame: self.aborted.append(time.monotonic()))


def _send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # SIGTERM is passed on as SIGINT


def _until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_asks_and_the_second_one_aborts(number: int) -> None:
    train = Train(grace=60)
    with train.interrupts.noted():
        train.begin()
        _send(number)
        assert (train.asked, len(train.aborted), train.interrupts.received) == (1, 0, 1)
        _send(number)
        assert (train.asked, len(train.aborted), train.interrupts.received) == (1, 1, 2)


def test_ctrl_c_after_sigterm_is_the_second_one() -> None:
    train = Train(grace=60)
    with train.interrupts.noted():
        train.begin()
        _send(signal.SIGTERM)
        _send(signal.SIGINT)
        assert (train.asked, len(train.aborted)) == (1, 1)


def test_the_end_of_the_grace_time_aborts() -> None:
    train = Train(grace=0.5)
    with train.interrupts.noted():
        train.begin()
        began = time.monotonic()
        _send(signal.SIGINT)
        assert train.aborted == []
        _until(lambda: train.aborted)
        assert 0.5 <= train.aborted[0] - began < 5
    assert train.asked == 1


def test_workers_that_end_within_the_grace_time_are_not_aborted() -> None:
    train = Train(grace=0.3)
    with train.interrupts.noted():
        train.begin()
        _send(signal.SIGINT)
    aborted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: aborted.append(number))
    time.sleep(0.6)
    signal.signal(signal.SIGINT, before)
    assert train.aborted == [] and aborted == [], "no signal is left over"


@pytest.mark.parametrize("number", BOTH)
def test_no_grace_time_aborts_at_once_and_asks_nobody(number: int) -> None:
    train = Train(grace=0)
    with train.interrupts.noted():
        train.begin()
        _send(number)
    assert (train.asked, len(train.aborted), train.interrupts.received) == (0, 1, 1)


def test_workers_that_do_not_train_yet_are_not_waited_for() -> None:
    train = Train(grace=60, trains=False)
    with train.interrupts.noted():
        train.begin()
        _send(signal.SIGINT)
    assert (train.asked, len(train.aborted)) == (1, 1)


def test_workers_are_ended_at_once_when_something_else_says_so() -> None:
    """Another driver has taken the run over: no last checkpoint, which would be written over its own."""
    train, lost = Train(grace=60), threading.Event()
    with train.interrupts.noted(), train.interrupts.ending(lost):
        train.begin()
        time.sleep(0.05)
        assert train.aborted == []
        lost.set()
        _until(lambda: train.aborted)
    assert (train.asked, len(train.aborted), train.interrupts.aborted) == (0, 1, True)


def test_nothing_ends_workers_that_have_ended() -> None:
    train, lost = Train(grace=60), threading.Event()
    with train.interrupts.noted(), train.interrupts.ending(lost):
        train.begin()
    lost.set()
    time.sleep(0.1)
    assert (train.asked, train.aborted, train.interrupts.aborted) == (0, [], False)


def test_before_ray_train_has_its_handler_ctrl_c_counts_and_is_pythons() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without it
    train = Train(grace=60, trains=False)
    with pytest.raises(KeyboardInterrupt), train.interrupts.noted():
        _send(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
    assert train.interrupts.received == 1


def test_other_handlers_are_installed_as_they_are() -> None:
    def mine(number: int, frame: Any) -> None: ...

    with Train(grace=1).interrupts.noted():
        before = signal.signal(signal.SIGUSR1, mine)
        assert signal.getsignal(signal.SIGUSR1) is mine
        signal.signal(signal.SIGUSR1, before)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_handlers_are_back_when_the_training_raises() -> None:
    with pytest.raises(RuntimeError), Train(grace=1).interrupts.noted():
        raise RuntimeError  # handlers_stay looks


def test_outside_the_main_thread_nothing_is_touched() -> None:
    """Where a run is started from a thread of a notebook."""
    seen: list[Any] = []

    def look() -> None:
        install = signal.signal
        with Train(grace=1).interrupts.noted():
            seen.append((signal.signal is install, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [(True, signal.getsignal(signal.SIGTERM))]


# A worker process

WORKER = """
import os, signal, sys, time
from raymb.rank import interrupt
{before}
interrupt.ask_on_sigterm()
{training}
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.1)
print("lives")
"""


def _worker(before: str = "", training: str = "") -> subprocess.CompletedProcess:
    code = WORKER.format(before=before, training=training)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)


def test_sigterm_to_a_worker_that_trains_asks() -> None:
    done = _worker(training="interrupt.on_sigterm = lambda: print('asked')")
    assert (done.returncode, done.stdout) == (0, "asked\nlives\n")


def test_sigterm_to_a_worker_that_does_not_train_is_rays() -> None:
    done = _worker(before="signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))")
    assert (done.returncode, done.stdout) == (7, "")


def test_sigterm_to_a_worker_without_a_handler_ends_it() -> None:
    done = _worker()
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")


def test_sigterm_that_was_ignored_stays_ignored() -> None:
    done = _worker(before="signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    assert (done.returncode, done.stdout) == (0, "lives\n")

"""Ctrl-C and SIGTERM: a last checkpoint first, within the grace time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SECONDS_BETWEEN_LOOKS = 0.5
on_sigterm: Callable[[], None] | None = None
"""What SIGTERM calls in a worker that trains."""


class Interrupts:
    """The driver's signals while workers run.

    The first one asks the workers for a checkpoint and their end, if they train. The second one, or the end of the
    grace time, ends them at once, by Ray Train's own SIGINT handler.

    Args:
        ask: asks the workers; returns whether there is anything to wait for.
        grace: seconds; 0 to end them at once.

    Attributes:
        received: signals.
        aborted: whether the workers were ended at once.
    """

    def __init__(self, ask: Callable[[], bool], grace: float):
        self.ask, self.grace = ask, grace
        self.received = 0
        self.aborted = False
        self.noting = False
        self.over = False
        self.timer: threading.Timer | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Ray Train 2.60 installs its own SIGINT handler inside fit(), so handlers that are installed inside are
        wrapped; SIGTERM takes the same way. Outside the main thread, where no handler can be installed, this does
        nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        install = signal.signal
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def install_noting(number: int, handler: Any) -> Any:
            return install(number, self._noting(handler) if number == signal.SIGINT else handler)

        install(signal.SIGTERM, _as_sigint)
        install_noting(signal.SIGINT, before[signal.SIGINT])  # Ray Train needs seconds until it installs its own
        signal.signal = install_noting  # type: ignore[assignment]
        self.noting = True
        try:
            yield
        finally:
            self.noting = False
            signal.signal = install
            if self.timer is not None:
                self.timer.cancel()
            for number, handler in before.items():
                install(number, handler)

    @contextmanager
    def ending(self, event: threading.Event) -> Iterator[None]:
        """Inside `noted`: end the workers at once, without a checkpoint, when the event is set."""
        done = threading.Event()

        def wait() -> None:
            while not done.is_set():
                if event.wait(_SECONDS_BETWEEN_LOOKS):
                    self.over = True
                    if self.noting:
                        os.kill(os.getpid(), signal.SIGINT)
                    else:
                        self.ask()  # not in the main thread: nothing but the workers' own end is left
                    return

        thread = threading.Thread(target=wait, name="raymb-ending", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _noting(self, handler: Any) -> Any:
        def noted(number: int, frame: FrameType | None) -> None:
            self.received += 1
            if self.received == 1 and self.grace and not self.over and self.ask():
                self.timer = threading.Timer(self.grace, os.kill, (os.getpid(), signal.SIGINT))
                self.timer.daemon = True
                self.timer.start()
                return
            self.aborted = True
            handler(number, frame)

        return noted if callable(handler) else handler


def ask_on_sigterm() -> None:
    """Install the handler of a worker process; in its main thread. Before training and after it the process ends as it
    would have."""
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if on_sigterm is not None:
            on_sigterm()
        elif callable(before):
            before(number, frame)
        elif before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, handle)


def _as_sigint(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGINT)

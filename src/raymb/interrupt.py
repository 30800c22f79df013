"""Ctrl-C and SIGTERM while workers train."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def noting_interrupts(interrupted: threading.Event) -> Iterator[None]:
    """Inside, Ray Train ends its workers on either signal, and `interrupted` is set.

    Ray Train 2.60 installs its own SIGINT handler inside fit(), so handlers that are installed inside are wrapped;
    SIGTERM takes the same way. Outside the main thread, where no handler can be installed, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    install = signal.signal
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def install_noting(number: int, handler: Any) -> Any:
        return install(number, _noting(handler, interrupted) if number == signal.SIGINT else handler)

    install(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    signal.signal = install_noting  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = install
        for number, handler in before.items():
            install(number, handler)


def _noting(handler: Any, interrupted: threading.Event) -> Any:
    def noted(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        handler(number, frame)

    return noted if callable(handler) else handler

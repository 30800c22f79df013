"""What a rank is doing, for those who watch it: the failure page and the watch for hangs.

The training thread writes plain attributes and never waits; other threads read them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Progress:
    """Where this rank is.

    phase: importing, loading, first step, step, saving, validating, testing or exporting.
    step: the last finished step.
    beats: grows with every phase, forward pass and exported tensor; when it stands still and no bytes move, the rank
        does.
    waits: for another rank, however long that one takes.
    """

    def __init__(self) -> None:
        self.phase = "importing"
        self.step = 0
        self.beats = 0
        self.waits = False
        self.listeners: list[Callable[[], None]] = []

    def enter(self, phase: str) -> None:
        """Begin a phase. Steps are entered once, when the training begins or resumes; `finished` counts them."""
        self.beats += 1
        if phase != self.phase:
            self.phase = phase
            for listener in self.listeners:
                listener()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For another rank, which has a long piece of work for all and is watched itself."""
        self.waits = True
        try:
            yield
        finally:
            self.beats += 1
            self.waits = False

    def beat(self) -> None:
        self.beats += 1

    def finished(self, step: int) -> None:
        self.step = step
        self.beats += 1

    def describe(self) -> str:
        """`step 12` while it trains, else the phase."""
        return f"step {self.step + 1}" if self.phase == "step" else self.phase

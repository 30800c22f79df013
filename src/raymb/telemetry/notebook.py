"""A run's live line in a notebook's cell, by IPython, which a notebook's kernel has imported."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from rich.console import Console

_SECONDS_BETWEEN_UPDATES = 0.5
_WIDTH = 100


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook; IPython in a terminal is none."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def console_for_people() -> Console:
    """Standard error; in a notebook plain text in the cell's output, where standard error looks like a failure."""
    if in_notebook():
        return Console(force_jupyter=False, force_terminal=False, width=_WIDTH)
    return Console(stderr=True)


class NotebookLine:
    """One line with a bar that is updated in its place.

    Args:
        steps: in all.
    """

    def __init__(self, steps: int):
        from IPython.display import HTML, display  # type: ignore[import-not-found]

        self.steps, self.shown, self.html = steps, 0.0, HTML
        self.handle: Any = display(HTML(""), display_id=True)

    def show(self, step: int, text: str) -> None:
        """Often enough for the eye, and the last step in any case."""
        now = time.monotonic()
        if step < self.steps and now - self.shown < _SECONDS_BETWEEN_UPDATES:
            return
        self.shown = now
        bar = f'<progress value="{step}" max="{self.steps}"></progress>'
        self.handle.update(self.html(f"{bar} <code>step {step:,}/{self.steps:,}&ensp;{html.escape(text)}</code>"))

"""What the terminal shows, on a terminal and elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from raymb.telemetry import terminal as progress
from raymb.telemetry.terminal import Terminal


def _step(step: int, **more: Any) -> dict[str, Any]:
    measured = {"loss": 2.34567, "grad_norm": 0.5, "step_seconds": 2.0, "tokens_per_second": 12345.6}
    return {"kind": "train", "step": step, **measured, **more}


class _Screen:
    def __init__(self, is_terminal: bool = False, train_iters: int = 100):
        self.text = io.StringIO()
        console = Console(file=self.text, force_terminal=is_terminal, width=200, color_system=None)
        self.terminal = Terminal(console, train_iters)

    def lines(self) -> list[str]:
        return [line.split("s  ", 1)[1] for line in self.text.getvalue().splitlines()]


def test_plain_lines_where_there_is_no_terminal() -> None:
    screen = _Screen()
    screen.terminal.phase("starting 2 cpu workers")
    screen.terminal.start(0)
    screen.terminal.step(_step(1))
    screen.terminal.validation({"kind": "validation", "step": 1, "loss": 1.25})
    screen.terminal.checkpoint(1)
    screen.terminal.close()
    assert screen.lines() == [
        "starting 2 cpu workers",
        "training",
        "step 1/100  loss 2.3457  grad norm 0.5  2 s/step  12,346 tokens/s  3:18 left",
        "validation at step 1: loss 1.2500",
        "checkpoint at step 1",
    ]
    assert "\x1b" not in screen.text.getvalue()


def test_plain_lines_are_few_and_hold_the_first_and_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000, 2000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    screen = _Screen(train_iters=40)
    for step in range(1, 41):
        screen.terminal.step(_step(step))
    shown = [int(line.split("/")[0].removeprefix("step ")) for line in screen.lines()]
    assert shown[0] == 1 and shown[-1] == 40 and 4 <= len(shown) <= 8
    assert screen.lines()[-1].endswith("0:00 left")


def test_resumed_run_says_from_where() -> None:
    screen = _Screen()
    screen.terminal.start(50)
    assert screen.lines() == ["training from step 50"]


def test_step_without_a_gradient_norm_is_shown() -> None:
    screen = _Screen()
    screen.terminal.step(_step(1, grad_norm=None))
    assert "grad norm -" in screen.lines()[0]


def test_terminal_keeps_the_last_step_when_the_live_line_goes() -> None:
    screen = _Screen(is_terminal=True, train_iters=3)
    screen.terminal.start(0)
    for step in (1, 2, 3):
        screen.terminal.step(_step(step))
    screen.terminal.close()
    text = screen.text.getvalue()
    assert "step 3/3  loss 2.3457" in text and "step 1/3" not in text
    screen.terminal.close()  # twice is no mistake


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_duration(seconds: float, text: str) -> None:
    assert progress._duration(seconds) == text


def test_training_says_with_how_many_workers() -> None:
    screen = _Screen()
    screen.terminal.start(50, 4)
    assert screen.lines() == ["training from step 50 with 4 workers"]


def test_lines_of_a_failure_are_shown_as_they_are() -> None:
    screen = _Screen()
    lines = ["failure 1: rank 0: [/pytorch/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:5", "  page  1.md"]
    screen.terminal.lines(lines)
    assert screen.text.getvalue().splitlines() == lines


def test_terminal_continues_with_its_live_line_after_a_restart() -> None:
    screen = _Screen(is_terminal=True, train_iters=3)
    screen.terminal.start(0)
    bar = screen.terminal.progress
    screen.terminal.step(_step(1))
    screen.terminal.start(0)
    assert screen.terminal.progress is bar, "a second one would fight for the same line"
    screen.terminal.close()

"""What the terminal or the notebook's cell shows during a run: a live line with ETA, else plain lines."""

from __future__ import annotations

import statistics
import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from raymb.credentials import redacted
from raymb.telemetry.notebook import NotebookLine, in_notebook
from raymb.telemetry.records import HeldOutLoss, Step

_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class Terminal:
    """Shows phases, steps, validations and checkpoints.

    Args:
        console: standard error; its `is_terminal` decides between the live line and plain ones.
        train_iters: steps in all.
    """

    def __init__(self, console: Console, train_iters: int):
        self.console = console
        self.train_iters = train_iters
        self.began = time.monotonic()
        self.printed = 0.0
        self.recent: list[float] = []
        self.progress: Progress | None = None
        self.line: NotebookLine | None = None

    def phase(self, text: str) -> None:
        self.console.print(
            f"[dim]{time.monotonic() - self.began:6.1f} s[/dim]  {escape(redacted(text))}",
            highlight=False,
            soft_wrap=True,
        )

    def lines(self, lines: list[str]) -> None:
        for line in lines:
            self.console.print(redacted(line), highlight=False, soft_wrap=True, markup=False)

    def start(self, step: int, workers: int = 0) -> None:
        by = f" with {workers} workers" if workers else ""
        self.phase("training" + (f" from step {step}" if step else "") + by)
        if self.console.is_terminal and self.progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), MofNCompleteColumn())
            self.progress = Progress(
                *columns, TimeRemainingColumn(), console=self.console, transient=True, speed_estimate_period=600
            )
            self.task = self.progress.add_task("", total=self.train_iters, completed=step)
            self.progress.start()
        elif self.line is None and in_notebook():
            self.line = NotebookLine(self.train_iters)

    def step(self, record: Step) -> None:
        text = (
            f"loss {record['loss']:.4f}  grad norm {_short(record['grad_norm'])}  {record['step_seconds']:.3g} s/step  "
            f"{record['tokens_per_second']:,.0f} tokens/s"
        )
        self.recent = [*self.recent[-9:], record["step_seconds"]]  # the slow first step is soon forgotten
        if self.progress is not None:
            self.progress.update(self.task, completed=record["step"], description=text)
        left = f"{_duration((self.train_iters - record['step']) * statistics.median(self.recent))} left"
        if self.line is not None:
            self.line.show(record["step"], f"{text}  {left}")
            return
        last = record["step"] == self.train_iters  # stays on the screen when the live line goes
        if last or (self.progress is None and self._is_due(record["step"])):
            self.printed = time.monotonic()
            self.phase(f"step {record['step']}/{self.train_iters}  {text}  {left}")

    def _is_due(self, step: int) -> bool:
        return step == 1 or time.monotonic() - self.printed >= _SECONDS_BETWEEN_PLAIN_LINES

    def validation(self, record: HeldOutLoss) -> None:
        when = f"at step {record['step']}" if record["step"] else "before training"
        self.phase(f"{record['kind']} {when}: loss {record['loss']:.4f}")

    def checkpoint(self, step: int) -> None:
        self.phase(f"checkpoint at step {step}")

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

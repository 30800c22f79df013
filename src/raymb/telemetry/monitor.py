"""The driver's side of a running job: every record that arrives goes to the files and to the terminal."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console

from raymb.errors import EXIT_FAILED, last_line
from raymb.run import directory as directories
from raymb.run.job import Job
from raymb.telemetry import startup
from raymb.telemetry.events import Events, state_after
from raymb.telemetry.export_line import exported_line
from raymb.telemetry.failures import Failures, console_lines, resumed_line
from raymb.telemetry.hub import Receiver
from raymb.telemetry.ray_messages import RAY_SAID
from raymb.telemetry.records import (
    Began,
    Export,
    Failed,
    Hang,
    HeldOutLoss,
    LossPart,
    Metric,
    Part,
    Phase,
    RankStatus,
    Record,
    Saved,
    Start,
    Warn,
)
from raymb.telemetry.sinks import JsonLines, TensorBoard
from raymb.telemetry.steps import StepJoiner
from raymb.telemetry.terminal import Terminal
from raymb.telemetry.trackers import trackers

_SECONDS_BETWEEN_TOUCHES = 10.0


class Monitor:
    """Runs from the start of the workers to `close`.

    Args:
        hub: the actor that the ranks send to.
        lost: is set when another driver has taken the run over.
    """

    def __init__(
        self,
        hub: Any,
        job: Job,
        place: directories.RunDir,
        console: Console,
        lost: threading.Event | None = None,
    ):
        self.lost = lost or threading.Event()
        self.place = place
        self.touched = 0.0
        self.sinks = [JsonLines(place.metrics), TensorBoard(place.tensorboard)]
        self.incomplete: list[Any] = []
        self.batch = job.spec.train.global_batch_size
        self.joiner = StepJoiner(job.layout.data_parallel_size, self.batch, job.layout.num_workers)
        self.failures = Failures(place.failures, place.logs, RAY_SAID)
        self.hub = hub
        self.trains = False
        self.seconds_of_a_save = 0.0
        self.terminal = Terminal(console, job.train_iters)
        self.terminal.phase(f"starting {job.layout.num_workers} {job.backend} workers")
        self.events = Events(place.events) if job.task == "train" else None
        self._note("started")
        self.trackers = trackers(job, place, self.terminal.phase)
        self.handlers: dict[str, Callable[[Any], None]] = {
            "phase": self._phase,
            "began": self._began,
            "warning": self._warn,
            "start": self._start,
            "part": self._part,
            "validation": self._held_out,
            "test": self._held_out,
            "checkpoint": self._saved,
            "export": self._exported,
            "rank": self._heard,
            "hang": self._heard,
            "failure": self._failed,
        }
        self.receiver = Receiver(hub, self._handle)

    def ask_to_stop(self, reason: str) -> bool:
        """Ask the workers for a last checkpoint and their end; whether they train, and so will answer."""
        if self.trains:
            self.terminal.phase(f"{reason}: asking the workers for a last checkpoint")
        with contextlib.suppress(RayError):
            ray.get(self.hub.ask.remote(reason), timeout=10)
        return self.trains

    def close(self) -> None:
        self.receiver.close()
        self.terminal.close()
        for sink in self.sinks:
            self._keep_going(sink, "close")

    def end(self, code: int) -> None:
        """The driver is about to exit with this code."""
        self._note("ended", code=code, state=state_after(code))
        for tracker in self.trackers:
            tracker.end(code)

    def give_way(self, failed: str, then: str) -> None:
        """The driver goes on with another layout, and a monitor of its own. Trackers hear of an end: the next ones
        resume their runs.

        Args:
            failed, then: the layouts in words.
        """
        self._note("layout", failed=failed, then=then)
        for tracker in self.trackers:
            tracker.end(EXIT_FAILED)

    def _note(self, event: str, **fields: Any) -> None:
        if self.events is not None:
            self.events.add(event, **fields)

    def _handle(self, record: Record | None) -> None:
        """Take what has come; None where nothing has."""
        if record is None:
            self._touch()
        else:
            self.handlers[record["kind"]](record)

    def _phase(self, record: Phase) -> None:
        self.terminal.phase(record["text"])

    def _began(self, record: Began) -> None:
        if self.events is not None:  # that of workers that reshard a checkpoint is before the training's
            startup.begin(record["phase"], record["time"])

    def _warn(self, record: Warn) -> None:
        self.terminal.phase(f"warning: {record['text']}")

    def _start(self, record: Start) -> None:
        self.trains = True
        heard = [one["node"] for rank, one in self.failures.status.items() if rank < record["world_size"]]
        nodes = {"nodes": len(set(heard))} if len(heard) == record["world_size"] else {}
        self._note("training", step=record["step"], workers=record["world_size"], chip=record["chip"], **nodes)
        self.joiner = StepJoiner(record["copies"], self.batch, record["world_size"], record["chip"])
        failure = self.failures.resumed(record["step"])
        self.failures.finished(record["step"])
        for sink in self.sinks:
            self._keep_going(sink, "restart_after", record["step"])
        if failure is not None:
            self.terminal.lines([resumed_line(failure)])
        self.terminal.start(record["step"], record["world_size"])

    def _part(self, record: Part | LossPart) -> None:
        self.failures.finished(record["step"])
        step = self.joiner.join(record)
        if step is not None:
            self._write(step)
            self.terminal.step(step)
            startup.write(self.place.startup, step["step"], step["time"])

    def _held_out(self, record: HeldOutLoss) -> None:
        self._write(record)
        self.terminal.validation(record)

    def _saved(self, record: Saved) -> None:
        self._note("checkpoint", step=record["step"])
        self.seconds_of_a_save = record.get("seconds", 0.0)
        self.terminal.checkpoint(record["step"])

    def _exported(self, record: Export) -> None:
        self._write(record)
        self.terminal.phase(exported_line(record))

    def _heard(self, record: RankStatus | Hang) -> None:
        self.failures.heard(record)

    def _failed(self, record: Failed) -> None:
        self.trains = False
        failure = self.failures.failed(record)
        self._note(
            "failure",
            number=failure.number,
            step=failure.reached,
            rank=failure.rank,
            what=failure.what,
            restarts=record["restarts"],
        )
        self.terminal.lines(console_lines(failure, self.failures.page(failure)))

    def _write(self, record: Metric) -> None:
        for sink in (*self.sinks, *self.trackers):
            self._keep_going(sink, "write", record)

    def _keep_going(self, sink: Any, method: str, *given: Any) -> None:
        """What one place cannot take, such as a full disk, the others and the terminal get nevertheless."""
        try:
            getattr(sink, method)(*given)
        except Exception as error:
            if sink not in self.incomplete:
                self.incomplete.append(sink)
                reason = f"{type(error).__name__}: {last_line(error)}"
                self.terminal.phase(f"warning: {sink.name} is incomplete from here on: {reason}")

    def _touch(self) -> None:
        if time.monotonic() - self.touched >= _SECONDS_BETWEEN_TOUCHES:
            self.touched = time.monotonic()
            if not directories.touch_lock(self.place):
                self.lost.set()

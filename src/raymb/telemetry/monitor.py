"""The driver's side of a running job: every record that arrives goes to the files and to the terminal."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from raymb import run_dir as directories
from raymb.job import Job
from raymb.telemetry.hub import Receiver
from raymb.telemetry.progress import Terminal
from raymb.telemetry.sinks import JsonLines, TensorBoard
from raymb.telemetry.steps import StepJoiner

Record = dict[str, Any]
_SECONDS_BETWEEN_TOUCHES = 10.0


class Monitor:
    """Runs from the start of the workers to `close`.

    Args:
        hub: the actor that the ranks send to.
    """

    def __init__(self, hub: Any, job: Job, place: directories.RunDir, console: Console):
        self.place = place
        self.touched = 0.0
        self.sinks = [JsonLines(place.metrics), TensorBoard(place.tensorboard)]
        self.joiner = StepJoiner(
            job.plan["data_parallel_size"], job.spec.train.global_batch_size, job.plan["num_workers"]
        )
        self.terminal = Terminal(console, job.plan["train_iters"])
        self.terminal.phase(f"starting {job.plan['num_workers']} {job.backend} workers")
        self.receiver = Receiver(hub, self._handle)

    def close(self) -> None:
        self.receiver.close()
        self.terminal.close()
        for sink in self.sinks:
            sink.close()

    def _handle(self, record: Record | None) -> None:
        if record is None:
            self._touch()
            return
        kind = record["kind"]
        if kind == "phase":
            self.terminal.phase(record["text"])
        elif kind == "start":
            self.joiner.chip = record["chip"]
            for sink in self.sinks:
                sink.restart_after(record["step"])
            self.terminal.start(record["step"])
        elif kind == "part":
            step = self.joiner.join(record)
            if step is not None:
                self._write(step)
                self.terminal.step(step)
        elif kind in ("validation", "test"):
            self._write(record)
            self.terminal.validation(record)
        elif kind == "checkpoint":
            self.terminal.checkpoint(record["step"])

    def _write(self, record: Record) -> None:
        for sink in self.sinks:
            sink.write(record)

    def _touch(self) -> None:
        if time.monotonic() - self.touched >= _SECONDS_BETWEEN_TOUCHES:
            self.touched = time.monotonic()
            directories.touch_lock(self.place)

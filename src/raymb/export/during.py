"""Exports of a running training, on rank 0: those of its checkpoints are made beside it, in a process of their own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.errors import RaymbError, RunFailed, last_line
from raymb.export.finishing import finish
from raymb.run.job import Job
from raymb.run.unverified import LeftToExport
from raymb.runtime.child import Child
from raymb.telemetry.records import Emit, Findings


def directories_of_step(job: Job, step: int) -> tuple[str, str]:
    """(model, adapter) of --save_hf_interval."""
    return f"{job.hf_dir}-step-{step}", f"{job.adapter_dir}-step-{step}"


class Exports:
    """Rank 0's side of all exports of a run. A thread makes those of --save_hf_interval, one after the other.

    Args:
        beat: called while something is waited for.
    """

    def __init__(self, job: Job, emit: Emit, beat: Callable[[], None]):
        self.job, self.emit, self.beat = job, emit, beat
        self.remote = RemoteCheckpoints.of(job)
        self.waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.in_use: set[int] = set()
        self.child: Child | None = None
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="raymb-exports", daemon=True)
        if job.spec.checkpoint.save_hf_interval:
            self.thread.start()
            for step in sorted(self._whole()):  # a former start may not have come to it
                self.saved(step)

    def _whole(self) -> checkpoint.Manifests:
        return (RemoteCheckpoints.of(self.job) or checkpoint).whole(self.job.checkpoint_dir)

    def _is_there(self, place: str) -> bool:
        """Whether an export has been made; at a URI, where this machine may hold one of a run that was overwritten."""
        return self.remote.has_model(place) if self.remote is not None else Path(place).exists()

    def saved(self, step: int) -> None:
        """A checkpoint is whole."""
        interval = self.job.spec.checkpoint.save_hf_interval
        wanted = interval and step % interval == 0
        if wanted and not any(self._is_there(place) for place in directories_of_step(self.job, step)):
            self.in_use.add(step)
            self.waiting.put(step)

    def conclude(self, left: LeftToExport) -> None:
        """The training has ended: make the exports of its checkpoints that are not there, then the run's own. No worker
        is needed for it, and no process group.

        Raises:
            RunFailed: it cannot be written, or is not what it should be.
        """
        step, written = left.step, left.written
        self.waiting.put(None)
        while self.thread.is_alive():
            self.thread.join(1.0)
            self.beat()
        if written is not None:
            self._done(step, finish(written, self.beat))
            return
        which = self.job.spec.checkpoint.export_checkpoint
        wanted = {"best": checkpoint.best_of, "latest": checkpoint.latest_of}[which](self._whole())
        if wanted is None:
            lacking = "has a --best_metric" if which == "best" else "is whole"
            raise RunFailed(f"--export_checkpoint {which}: no checkpoint {lacking}", "raymb export RUN")
        self.emit({"kind": "phase", "text": f"exporting the {which} checkpoint, of step {wanted}"})
        self._export(wanted, self.job.hf_dir, self.job.adapter_dir)

    def close(self) -> None:
        """Leave undone what is not done yet."""
        self.closed = True
        self.waiting.put(None)
        if self.child is not None:
            self.child.kill()

    def _run(self) -> None:
        while (step := self.waiting.get()) is not None and not self.closed:
            try:
                self._export(step, *directories_of_step(self.job, step))
            except (RaymbError, OSError) as error:
                if not self.closed:
                    self.emit({"kind": "warning", "text": f"step {step} is not exported: {error}"})
            self.in_use.discard(step)

    def _export(self, step: int, model: str, adapter: str) -> None:
        """Export a checkpoint to these directories."""
        job, log = self.job, Path(self.job.log_dir, f"export-step-{step}.log")
        directory = checkpoint.iteration_dir(job.checkpoint_dir, step)
        if self.remote is not None:
            self.remote.fetch_here(directory)
        self.child = Child("raymb.export.later", {"CUDA_VISIBLE_DEVICES": ""})
        given = replace(job, load_dir=directory, hf_dir=model, adapter_dir=adapter)
        findings, errors = self.child.result(given.to_json(), self.beat)
        if findings is None:
            if not self.closed:
                log.write_text(errors, encoding="utf-8")
            raise RunFailed(last_line(errors), f"its log: {log}")
        log.unlink(missing_ok=True)  # of a former start
        self._done(step, findings)

    def _done(self, step: int, findings: Findings) -> None:
        if self.remote is not None:
            for place in findings["directories"]:
                self.remote.upload_model(Path(place))
        self.emit({"kind": "export", "step": step, "time": time.time(), **findings})

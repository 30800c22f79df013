"""What becomes of a checkpoint that every rank has written: manifest, pointers, and the deletion of older ones."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from raymb.bridge.collectives import largest_of_all
from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.fetching import local_rank
from raymb.checkpoints.format import optimizer_format, optimizer_layout
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.errors import RunFailed, StorageError, last_line
from raymb.rank.accelerator import precision_of
from raymb.rank.progress import Progress
from raymb.run.directory import POINTERS
from raymb.run.job import Job
from raymb.telemetry.records import Emit


class CheckpointExports(Protocol):
    """Who makes exports of checkpoints (raymb.export.during), as far as a checkpoint is concerned.

    in_use: steps whose checkpoints are still read.
    """

    in_use: set[int]

    def saved(self, step: int) -> None:
        """A checkpoint is whole."""


class Saving:
    """What a rank knows of its run's checkpoints.

    Args:
        emit: takes a metrics record and returns at once.
        register: tells Ray Train of (directory, step); may wait, so it is called on a thread.
        losses: (step, loss) of the validations before the checkpoint that this start resumes from.
    """

    def __init__(
        self,
        job: Job,
        progress: Progress,
        emit: Emit,
        register: Callable[[str, int], None],
        losses: list[list[float]],
    ):
        self.job, self.progress, self.emit, self.register, self.losses = job, progress, emit, register, losses
        self.last_step = job.train_iters  # until early stopping sets an earlier one
        self.warned = False
        self.written: int | None = None
        self.parts: list[str] = []  # of it, the files that ranks have uploaded themselves
        self.begun = time.monotonic()
        self.before: Callable[[Any], None] = lambda context: None
        self.train_loss: Callable[[], float] = lambda: float("-inf")
        self.remote = RemoteCheckpoints.of(job)
        first = self.remote is not None and dist.get_rank() == 0
        self.known: checkpoint.Manifests = {}
        self.before_start = set(self.remote.steps_of(job.checkpoint_dir)) if self.remote and first else set()
        self.unpublished: tuple[int, Exception] | None = None
        self.exports: CheckpointExports | None = None
        self.later = ThreadPoolExecutor(1, thread_name_prefix="raymb-checkpoint")

    def directory(self, step: int) -> Path:
        return Path(checkpoint.iteration_dir(self.job.checkpoint_dir, step))

    def warn(self, text: str) -> None:
        """Tell the user, once for all ranks."""
        if dist.get_rank() == 0:
            self.emit({"kind": "warning", "text": text})

    def clear(self, step: int) -> None:
        """An empty directory for this step's checkpoint, on every machine, before any rank writes into it: what an
        earlier start left of it must not stay beside new files. Collective, because Megatron-Core plans a save of a
        known structure without any exchange, and a rank that is ahead would write before the first one has made the
        directory."""
        with contextlib.suppress(OSError, StorageError):  # the ranks that cannot write will say so
            if self.remote is not None and step in self.before_start:
                self.remote.delete(self.directory(step))
            if self._cleans:
                shutil.rmtree(self.directory(step), ignore_errors=True)
                self.directory(step).mkdir(parents=True, exist_ok=True)
        largest_of_all(0.0)

    @property
    def _cleans(self) -> bool:
        """Whether this rank deletes for its machine, or for all where they share a file system."""
        return dist.get_rank() == 0 if self.remote is None else local_rank() == 0

    def metric(self, step: int) -> float | None:
        """--best_metric at a step; collective."""
        if self.job.spec.checkpoint.best_metric == "train_loss":
            return largest_of_all(self.train_loss())
        return next((loss for at, loss in reversed(self.losses) if at == step), None)

    def validated(self, step: int, loss: float) -> None:
        """A validation has ended: the last one comes after the last checkpoint."""
        self.losses.append([step, loss])
        late = dist.get_rank() == 0 and self.written == step
        manifest = checkpoint.read_manifest(self.directory(step)) if late else None
        if manifest is not None and self.job.spec.checkpoint.best_metric == "validation_loss":
            files = manifest.pop("files")
            checkpoint.write_manifest(
                self.directory(step), files, {**manifest, "metric": loss, "validation_losses": self.losses}
            )
            self.later.submit(self._publish, step, self.parts, True)

    def made_whole(self, step: int, metric: float | None, files: dict[str, Any]) -> None:
        """Every rank has written: the manifest, the pointers, and what is too old."""
        self.written, self.parts = step, list(files)
        if dist.get_rank() == 0:
            directory = self.directory(step)
            small = [path for path in directory.iterdir() if path.is_file() and path.name not in files]
            state = {
                "step": step,
                "metric": metric,
                "validation_losses": self.losses,
                "layout": optimizer_layout(self.job.layout),
                "copies": self.job.layout.data_parallel_size * self.job.layout.context_parallel_size,
                "precision": precision_of(self.job),
                "any_layout": self.job.task == "reshape",
                "optimizer_format": optimizer_format(self.job.spec),
                "deletable": self.job.spec.checkpoint.keep_last != 0,
            }
            checkpoint.write_manifest(directory, {**files, **checkpoint.describe_files(small)}, state)
            self.later.submit(self._publish, step, self.parts)
        elif self.remote is not None and self._cleans:
            self.later.submit(self.remote.forget_old, self.job.checkpoint_dir, step).add_done_callback(_raise_in_log)
        self.later.submit(self.register, str(self.directory(step)), step).add_done_callback(_raise_in_log)

    def given_up(self, step: int, reason: str) -> None:
        """A checkpoint could not be written. The training continues without it, unless it was the last.

        Raises:
            RunFailed: it was the last one.
        """
        if self._cleans:
            shutil.rmtree(self.directory(step), ignore_errors=True)
        if dist.get_rank() == 0:
            if self.remote is not None:  # what other ranks have uploaded
                self.later.submit(self.remote.delete, self.directory(step)).add_done_callback(_raise_in_log)
            self.warn(f"no checkpoint at step {step}: {reason}")
        if step >= self.last_step:
            raise RunFailed(
                f"the last checkpoint, at step {step}, could not be written: {reason}",
                "make room at --storage_path (or --output_dir); the same command resumes from the checkpoint before",
            )

    def close(self) -> None:
        self.later.shutdown(wait=True)

    def check_published(self) -> None:
        """After the training and `close`.

        Raises:
            StorageError: the last checkpoint is here, and is not where the run is kept.
        """
        if self.unpublished is not None:
            step, error = self.unpublished
            raise StorageError(
                f"the last checkpoint, at step {step}, could not be published: {last_line(error)}",
                "the same command resumes from the checkpoint before",
            ) from error

    def _publish(self, step: int, uploaded: list[str], again: bool = False) -> None:
        """On the thread, after the manifest. Where it fails, the training continues, and the next checkpoint is tried;
        this one does not count."""
        try:
            self._point_at(step, uploaded)
            self.unpublished = None
        except Exception as error:
            self.unpublished = step, error
            self.warn(f"the checkpoint of step {step} could not be published: {last_line(error)}")
            return
        if not again:
            self.emit({"kind": "checkpoint", "step": step, "seconds": round(time.monotonic() - self.begun, 1)})
        try:
            if self.exports is not None and not again:
                self.exports.saved(step)
            self._delete_old(step)
        except Exception as error:
            self.warn(f"after the checkpoint of step {step}: {last_line(error)}")

    def _point_at(self, step: int, uploaded: list[str]) -> None:
        home = Path(self.job.checkpoint_dir)
        if self.remote is not None:
            self.remote.finish(self.directory(step), uploaded)
        checkpoint.point(home, checkpoint.LATEST, step)
        best = checkpoint.best_of(self._lasting(step))
        if best is not None:
            checkpoint.point(home, checkpoint.BEST, best)
        if self.remote is not None:
            self.remote.upload(path for name in POINTERS if (path := home / name).exists())

    def _whole(self, step: int) -> checkpoint.Manifests:
        """The manifests of whole checkpoints, of which this one is new. Older ones stay as they are; a newer one, of an
        earlier start, will be written again."""
        if self.remote is not None:
            return self.remote.whole(self.job.checkpoint_dir)
        older = {at: manifest for at, manifest in self.known.items() if at < step}
        self.known = checkpoint.whole(self.job.checkpoint_dir, older)
        return self.known

    def _lasting(self, step: int) -> checkpoint.Manifests:
        """Those that are not deleted next: `best` must not name one that is."""
        settings, manifests = self.job.spec.checkpoint, self._whole(step)
        newest = sorted(manifests, reverse=True)
        old = checkpoint.old_steps(newest, manifests, settings.keep_last, settings.keep_best, self._in_use(step))
        return {at: manifest for at, manifest in manifests.items() if at not in old}

    def _in_use(self, step: int) -> set[int]:
        return {step, *(self.exports.in_use if self.exports is not None else ())}

    def _delete_old(self, step: int) -> None:
        settings, home, in_use = self.job.spec.checkpoint, self.job.checkpoint_dir, self._in_use(step)
        if self.remote is None:
            checkpoint.delete_old(home, settings.keep_last, settings.keep_best, in_use, self.known)
        else:
            self.remote.delete_old(home, settings.keep_last, settings.keep_best, in_use)
            self.remote.forget_old(home, step)


def _raise_in_log(future: Future[Any]) -> None:
    if future.exception() is not None:
        print(f"{time.strftime('%X')} after a checkpoint: {future.exception()!r}", flush=True)

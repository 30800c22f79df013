"""Checkpoints that are written beside the training, and that count only when they are whole.

Bridge makes the manager by its name and hands it nothing of the run, so the rank's `Saving` is a class attribute.
Megatron's own asynchronous writer is a process for each rank, which imports torch and Megatron again (seconds of CPU
time at every start and restart) and takes the tensors over shared memory. Here a thread writes: most of that time is
spent in the kernel, without the interpreter.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from megatron.bridge.training.checkpointing import (
    CheckpointLoadContext,
    CheckpointSaveContext,
    DefaultCheckpointManager,
)
from torch.distributed.checkpoint.api import CheckpointException

from raymb.bridge.collectives import largest_of_all, some_rank
from raymb.bridge.patches.checkpoint_writing import write_with
from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.format import optimizer_format, optimizer_layout
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.errors import RunFailed
from raymb.rank.accelerator import precision_of
from raymb.rank.progress import Progress
from raymb.run.directory import POINTERS
from raymb.run.job import Job
from raymb.telemetry.records import Emit

_ROOM_FOR_SMALL_FILES = 2 << 20
_WORTH_A_WARNING = 2.0  # seconds
_SHORT_TURN = 0.0005  # seconds that the writing thread may keep the interpreter while the training waits for it


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
        losses: (step, loss) of the validations before the checkpoint that this start goes on from.
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
        self.warned = False
        self.written: int | None = None
        self.before: Callable[[Any], None] = lambda context: None
        self.train_loss: Callable[[], float] = lambda: float("-inf")
        self.remote = RemoteCheckpoints.of(job)
        self.exports: CheckpointExports | None = None
        self.later = ThreadPoolExecutor(1, thread_name_prefix="raymb-checkpoint")

    def directory(self, step: int) -> Path:
        return Path(checkpoint.iteration_dir(self.job.checkpoint_dir, step))

    def warn(self, text: str) -> None:
        """Tell the user, once for all ranks."""
        if dist.get_rank() == 0:
            self.emit({"kind": "warning", "text": text})

    def clear(self, step: int) -> None:
        """An empty directory for this step's checkpoint, before any rank writes into it: what a killed run left of it
        must not stay beside new files. Collective, because Megatron-Core plans a save of a known structure without any
        exchange, and a rank that is ahead would write before the first one has made the directory."""
        if dist.get_rank() == 0:
            if self.directory(step).exists():
                shutil.rmtree(self.directory(step), ignore_errors=True)
                if self.remote is not None:
                    self.remote.delete([self.directory(step)])
            with contextlib.suppress(OSError):  # the ranks that cannot write will say so
                self.directory(step).mkdir(parents=True, exist_ok=True)
        largest_of_all(0.0)

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
            self.later.submit(self._publish, step, list(files), True).add_done_callback(_raise_in_log)

    def made_whole(self, step: int, metric: float | None, files: dict[str, Any]) -> None:
        """Every rank has written: the manifest, the pointers, and what is too old."""
        self.written = step
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
            }
            checkpoint.write_manifest(directory, {**files, **checkpoint.describe_files(small)}, state)
            self.later.submit(self._publish, step, list(files)).add_done_callback(_raise_in_log)
        self.later.submit(self.register, str(self.directory(step)), step).add_done_callback(_raise_in_log)

    def given_up(self, step: int, reason: str) -> None:
        """A checkpoint could not be written. The training goes on; at its end there is nothing to go on for.

        Raises:
            RunFailed: it was the last one.
        """
        if dist.get_rank() == 0:
            shutil.rmtree(self.directory(step), ignore_errors=True)
            self.warn(f"no checkpoint at step {step}: {reason}")
        if step >= self.job.train_iters:
            raise RunFailed(
                f"the last checkpoint, at step {step}, could not be written: {reason}",
                "make room at --storage_path (or --output_dir); the same command goes on from the checkpoint before",
            )

    def close(self) -> None:
        self.later.shutdown(wait=True)

    def _publish(self, step: int, uploaded: list[str], again: bool = False) -> None:
        """On the thread, behind the manifest: the pointers, the message, and what is too old."""
        settings, home = self.job.spec.checkpoint, Path(self.job.checkpoint_dir)
        if self.remote is not None:
            self.remote.finish(self.directory(step), uploaded)
        checkpoint.point(home, checkpoint.LATEST, step)
        best = checkpoint.best_step(home)
        if best is not None:
            checkpoint.point(home, checkpoint.BEST, best)
        if self.remote is not None:
            self.remote.upload(path for name in POINTERS if (path := home / name).exists())
        if not again:
            self.emit({"kind": "checkpoint", "step": step})
            if self.exports is not None:
                self.exports.saved(step)
        in_use = set(self.exports.in_use) if self.exports is not None else ()
        gone = checkpoint.delete_old(home, settings.keep_last, settings.keep_best, in_use)
        if self.remote is not None:
            self.remote.delete(self.directory(old) for old in gone)


class Manager(DefaultCheckpointManager):
    """Bridge's checkpoint manager with raymb's writes."""

    saving: ClassVar[Saving]

    def save(self, ctx: CheckpointSaveContext, callback_manager: Any) -> None:
        saving, writes = self.saving, ctx.state.async_calls_queue
        assert writes is not None
        saving.before(ctx)
        saving.progress.enter("saving")
        asked = time.monotonic()
        writes.maybe_finalize_async_calls(blocking=True)  # one at a time: results of two would mix
        if (waited := time.monotonic() - asked) > _WORTH_A_WARNING and not saving.warned:
            saving.warned = True
            saving.warn(
                f"the training waited {waited:.0f} s for the checkpoint before to be written: --save_interval "
                f"{saving.job.spec.checkpoint.save_interval} is too short for this storage"
            )
        step = ctx.state.train_state.step
        saving.clear(step)
        writes.begin(step, saving.metric(step))
        if saving.job.spec.parallel.fsdp:
            self._write_now(ctx, writes, saving.directory(step))
        else:
            super().save(ctx, None)
        if not saving.job.spec.checkpoint.async_save:
            writes.maybe_finalize_async_calls(blocking=True)
        saving.progress.enter("step")

    def _write_now(self, ctx: CheckpointSaveContext, writes: Any, directory: Path) -> None:
        """Megatron-FSDP's checkpoints Bridge writes itself."""
        error = ""
        try:
            super().save(ctx, None)
        except CheckpointException as problem:  # torch's, on every rank if it fails on one
            error = "; ".join(f"{type(one).__name__}: {one}" for one, _ in problem.failures.values())
        writes.take(sorted(directory.glob(f"__{dist.get_rank()}_*.distcp")), error)

    def load(self, ctx: CheckpointLoadContext) -> tuple[int, int]:
        self.saving.progress.enter("loading")
        return super().load(ctx)


class Writes:
    """In the place of Megatron's AsyncCallsQueue: the same methods, and a thread that writes."""

    def __init__(self, saving: Saving):
        self.saving = saving
        self.step, self.metric = 0, None
        self.request: Any = None
        self.written: Future[tuple[dict[str, Any], str]] | None = None

    def begin(self, step: int, metric: float | None) -> None:
        self.step, self.metric = step, metric

    def schedule_async_request(self, request: Any) -> int:
        """Copy what this rank writes and hand it to a thread. Collective."""
        arguments = list(request.async_fn_args)
        if request.preload_fn is not None:
            arguments[1] = _own_copies(request.preload_fn())
        self.request, self.written = request, Future()
        threading.Thread(
            target=self._write, args=(request.async_fn, arguments, self.written), name="raymb-write", daemon=True
        ).start()
        return self.step

    def take(self, files: list[Path], error: str) -> None:
        """What this rank has written already. Collective.

        Args:
            error: why it is nothing; the same on all ranks.
        """
        self.request, self.written = SimpleNamespace(async_fn=None, finalize_fns=()), Future()
        self.written.set_result(({} if error else self._described(files), error))
        self.maybe_finalize_async_calls(blocking=True)

    def maybe_finalize_async_calls(self, blocking: bool = False, no_dist: bool = False) -> list[int]:
        """Make the checkpoint whole once every rank has written its part. Collective."""
        if self.request is None or self.written is None:
            return []
        if not blocking and some_rank(not self.written.done()):
            return []
        phase = self.saving.progress.phase
        self.saving.progress.enter("saving")
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self.written.result())
        request, self.request, self.written = self.request, None, None
        failed = [f"{error} (rank {rank})" for rank, (_, error) in enumerate(parts) if error]
        if failed:
            _forget_results(request)
            self.saving.given_up(self.step, failed[0])
        else:
            for finalize in request.finalize_fns:
                finalize()
            files = {name: entry for part, _ in parts for name, entry in part.items()}
            self.saving.made_whole(self.step, self.metric, files)
        self.saving.progress.enter(phase)
        return [self.step]

    def get_num_unfinalized_calls(self) -> int:
        return 0 if self.request is None else 1

    def close(self, abort: bool = False) -> None:
        if not abort:
            self.maybe_finalize_async_calls(blocking=True)

    def _write(self, function: Any, arguments: list[Any], written: Future[tuple[dict[str, Any], str]]) -> None:
        """On the thread: write, and say which files there are now, or what went wrong."""
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SHORT_TURN)
        try:
            error = ""
            if function is not None:
                function(*arguments)
                error = _error_in(arguments[-1])
            files = [] if function is None or error else [Path(bucket[0]) for bucket in arguments[1]]
            if dist.get_rank() == 0 and not error:
                _make_sure_of_room(self.saving.directory(self.step))
            written.set_result(({} if error else self._described(files), error))
        except Exception as problem:
            written.set_result(({}, f"{type(problem).__name__}: {problem}"))
        finally:
            sys.setswitchinterval(interval)

    def _described(self, files: list[Path]) -> dict[str, Any]:
        """The manifest's entries of files, which go to the run's address, if it has one."""
        described = checkpoint.describe_files(files)
        if self.saving.remote is not None:
            self.saving.remote.upload(files)
        return described


def install(saving: Saving) -> str:
    """Have Bridge use Manager in this process; the name that its config wants."""
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

    Manager.saving = saving
    register_allowed_target_prefix(__name__)

    write_with(lambda: Writes(saving))
    return f"{__name__}.{Manager.__name__}"


def _own_copies(buckets: list[Any]) -> list[Any]:
    """What Megatron takes off a GPU is a copy; off a CPU it is the live tensor, which the next step changes."""
    if torch.cuda.get_device_name() != "cpu":
        return buckets
    return [
        (file, key, (data, [(item, tensor.clone()) for item, tensor in tensors]))
        for file, key, (data, tensors) in buckets
    ]


def _error_in(results: Any) -> str:
    """What the writer put into its queue instead of results; the queue stays as it is."""
    first = results.get()
    results.put(first)
    return str(first) if isinstance(first, Exception) else ""


def _forget_results(request: Any) -> None:
    """A checkpoint that is given up leaves its results in the queue that all share."""
    if request.async_fn is not None and not request.async_fn_args[-1].empty():
        request.async_fn_args[-1].get()


def _make_sure_of_room(directory: Path) -> None:
    """What comes after the ranks' files is small, and is written between barriers, where a full disk would hang."""
    probe = directory / ".room"
    try:
        probe.write_bytes(bytes(_ROOM_FOR_SMALL_FILES))
    finally:
        probe.unlink(missing_ok=True)


def _raise_in_log(future: Future[Any]) -> None:
    if future.exception() is not None:
        print(f"{time.strftime('%X')} after a checkpoint: {future.exception()!r}", flush=True)

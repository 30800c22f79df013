"""A rank's part of a checkpoint, written on a thread while the training continues.

Megatron's own asynchronous writer is a process for each rank, which imports torch and Megatron again (seconds of CPU
time at every start and restart) and takes the tensors over shared memory. A thread will do: most of its time is spent
in the kernel, without the interpreter.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from raymb.bridge.collectives import some_rank
from raymb.bridge.saving import Saving
from raymb.checkpoints import manifest as checkpoint

_ROOM_FOR_SMALL_FILES = 2 << 20
_SHORT_TURN = 0.0005  # seconds that the writing thread may keep the interpreter while the training waits for it


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
            arguments[1] = _own_copies(request.preload_fn(), arguments[1])
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
        """The manifest's entries of files, which go to the run's URI, if it has one."""
        described = checkpoint.describe_files(files)
        if self.saving.remote is not None:
            self.saving.remote.upload(files)
        return described


def _own_copies(buckets: list[Any], live: list[Any]) -> list[Any]:
    """What Megatron takes off a GPU is a copy. What is on the host already, all of it on CPU workers and the moments of
    an offloaded optimizer elsewhere, is the live tensor, which the next step changes.

    Args:
        buckets: what Megatron would have written, and live: the tensors that it took them from.
    """
    sources = {id(item): source for _, _, (_, tensors) in live for item, source in tensors}
    return [
        (file, key, (data, [(item, _copied(tensor, sources[id(item)])) for item, tensor in tensors]))
        for file, key, (data, tensors) in buckets
    ]


def _copied(tensor: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    same = tensor.untyped_storage().data_ptr() == source.untyped_storage().data_ptr()
    return tensor.clone() if same else tensor


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

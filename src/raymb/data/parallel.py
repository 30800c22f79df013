"""Encode batches in order, in processes of their own: as many as they keep busy, at most one a core.

Also a single batch leaves this process: there, torch can be left out of transformers, which saves seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from raymb.cpu import stand_in
from raymb.data.cores import usable_cores
from raymb.data.encode import Encoder
from raymb.data.encoded import Encoded
from raymb.data.settings import Settings
from raymb.data.sources import Batch, Source
from raymb.errors import RaymbError
from raymb.runtime.distributions import look_up_one_by_one

_IN_FLIGHT = 3  # batches for each process, so that none waits and memory stays bounded

_encoder: Encoder | None = None


class _Process(SpawnProcess):
    """One that does not import the main module again: in a script that calls raymb.finetune it would start a run of
    its own, and raymb's would import the command line."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            sys.modules["__main__"] = main


class _Context(SpawnContext):
    Process = _Process


class Encoders:
    """A pool of processes that all encode with the same settings. A context manager.

    Args:
        console: where progress bars go, if it is a terminal.
    """

    def __init__(self, settings: Settings, console: Console | None):
        self.settings, self.console = settings, console
        self.workers = usable_cores()

    def __enter__(self) -> Encoders:
        self.pool = ProcessPoolExecutor(self.workers, _Context(), initializer=leave_out_torch)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def over(self, source: Source) -> Iterator[Encoded]:
        """The encoded batches of a source, in order."""
        try:
            with _progress(source, self.console) as advance:
                yield from map(advance, self.encoded(source))
        except BrokenProcessPool:
            raise RaymbError(
                f"a process that tokenizes {source.name} was killed", "most often there is too little memory"
            ) from None

    def encoded(self, source: Source) -> Iterator[Encoded]:
        """The same, with no progress shown."""
        return self.here(source.batches())

    def here(self, batches: Iterator[Batch]) -> Iterator[Encoded]:
        """In this machine's processes."""
        waiting: deque[Future[Encoded]] = deque()
        for batch in batches:
            waiting.append(self.pool.submit(encode, self.settings, batch))
            if len(waiting) >= self.workers * _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def in_a_process[Result](work: Callable[..., Result], *given: Any) -> Result:
    """What a function of a module returns, called in a process that leaves torch out."""
    with ProcessPoolExecutor(1, _Context(), initializer=leave_out_torch) as pool:
        return pool.submit(work, *given).result()


def leave_out_torch() -> None:
    """For a process that tokenizes only; before transformers is imported."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # that there is no torch is on purpose
    stand_in.hide("torch")
    look_up_one_by_one()


def encode(settings: Settings, batch: Batch) -> Encoded:
    """By the one encoder that this process has."""
    global _encoder
    if _encoder is None:
        _encoder = Encoder(settings)
    return _encoder.encode(batch)


@contextmanager
def _progress(source: Source, console: Console | None) -> Iterator[Callable[[Encoded], Encoded]]:
    """A function that every result passes through."""
    if console is None or not console.is_terminal:
        yield lambda encoded: encoded
        return
    columns = (TextColumn("preparing {task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    rows = TextColumn("{task.fields[rows]:,} rows")
    with Progress(*columns, rows, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(source.name, total=source.size, rows=0)
        count = 0

        def advance(encoded: Encoded) -> Encoded:
            nonlocal count
            count += len(encoded.lengths)
            progress.update(task, advance=encoded.size, rows=count)
            return encoded

        yield advance

"""A rank that makes no progress: its stacks are written, and it ends, so that the workers start again."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from raymb.rank.progress import Progress
from raymb.storage.transfer import SLOWEST

_BEFORE_THE_FIRST_STEP = 900.0  # seconds at least: imports, loading and compiling are one long beat each
_SECONDS_FOR_OTHERS = 3.0  # every rank writes its stacks before the first one ends


class HangWatch:
    """Watches this process' own progress. Whatever reads, hashes, writes or downloads files makes some, as long as it
    is not slower than a transfer may be.

    Args:
        timeout: seconds without a forward pass, a new phase, an exported tensor or bytes that move, once the first step
            is done.
        file: where the stacks of all threads go; made when there are some.
        peers: rank to process number of the ranks on this host.
        tell: called with the ranks on this host that are stopped or gone, before the process ends.
    """

    def __init__(
        self,
        progress: Progress,
        timeout: float,
        file: Path,
        peers: Callable[[], dict[int, int]],
        tell: Callable[[dict[int, str]], None],
    ):
        self.progress, self.timeout, self.file, self.peers, self.tell = progress, timeout, file, peers, tell
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-hang", daemon=True)
        if timeout:
            self.thread.start()

    def close(self) -> None:
        self.closed.set()
        if self.thread.is_alive():
            self.thread.join()  # it must not set the timer again
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        last, since, moved = -1, time.monotonic(), bytes_moved()
        interval = min(1.0, self.timeout / 10)
        while not self.closed.wait(interval):
            now, seconds = bytes_moved(), time.monotonic() - since
            moves = now - moved >= SLOWEST * max(1.0, seconds)
            if self.progress.beats != last or self.progress.waits or moves:
                last, since, moved = self.progress.beats, time.monotonic(), now
                # If code in C holds the interpreter, this thread will not run again: a timer in C then writes the
                # stacks to the worker's log and ends the process.
                faulthandler.dump_traceback_later(self._limit() + 60, exit=True, file=2)
            elif seconds >= self._limit():
                self._end()

    def _limit(self) -> float:
        starting = self.progress.phase in ("importing", "loading", "first step")
        return max(self.timeout, _BEFORE_THE_FIRST_STEP) if starting else self.timeout

    def _end(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "w", encoding="utf-8") as file:
            self._write(file)
        others = self.peers()
        self.tell({rank: state for rank, pid in others.items() if (state := _state(pid))})
        time.sleep(_SECONDS_FOR_OTHERS)
        for pid in others.values():
            if _state(pid) == "stopped":
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)  # it cannot end itself, and holds its GPU
        os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, file: IO[str]) -> None:
        file.write(f"no progress for {self.timeout:g} s in {self.progress.describe()}\n\n")
        file.flush()
        faulthandler.dump_traceback(file=file, all_threads=True)


def bytes_moved() -> int:
    """What this process has read and written so far: by calls, and by files that it has mapped. Sockets hardly count,
    but what a download brings is written. 0 where the system does not tell."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    counts = dict(line.split(": ") for line in text.splitlines())
    return sum(int(counts[name]) for name in ("rchar", "wchar", "read_bytes"))


def _state(pid: int) -> str:
    """stopped or gone; "" for a process that runs or waits."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "gone"
    return {"T": "stopped", "t": "stopped", "Z": "gone", "X": "gone"}.get(letter, "")

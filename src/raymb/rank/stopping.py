"""All ranks leave the training loop after the same step, without a collective on the step's path.

Any rank may ask (a signal, a notice of preemption, the driver). Threads beside the training agree over torch's
key-value store: each rank promises the latest step at which it will look again, the largest promise is the last step.
Until the answer is there a rank waits after the step it promised, so nobody runs past it; and a rank that waits has
done its part of every step that the others still have to finish, so nobody is waited for in vain.
Until somebody asks, each thread waits inside the store, which wakes all of them at once and is asked nothing meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
from datetime import timedelta
from typing import Any, Protocol

STARTS_AGAIN = ("preemption", "resize")
"""Reasons after which Ray Train starts the workers again by itself."""
_OVER = "-"
_AT_A_TIME = timedelta(days=1)  # of waiting


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str) -> Any: ...
    def get(self, key: str) -> bytes: ...
    def wait(self, keys: list[str], timeout: timedelta) -> Any: ...
    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes: ...


class StopTogether:
    """A rank's end of the agreement.

    Args:
        store: a connection of its own to the store that all ranks of this start share: it waits.
        voice: another one, which others may use as well, for what is said meanwhile.
    """

    def __init__(self, store: Store, voice: Store, rank: int, world_size: int):
        self.store, self.voice, self.rank, self.world_size = store, voice, rank, world_size
        self.done = 0
        self.promised = False
        self.speaks = False
        self.reason = ""
        self.last: int | None = None
        self.left = False
        self.agreed = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-stop", daemon=True)

    def start(self, step: int) -> None:
        """The training begins after this step."""
        self.done = step
        self.thread.start()

    def ask(self, reason: str) -> None:
        """Stop all ranks. From any thread; the first reason that arrives counts."""
        if not self.speaks and not self.agreed.is_set():
            self.speaks = True
            threading.Thread(target=self._say, args=(reason,), name="raymb-ask", daemon=True).start()

    def leave_after(self, step: int) -> str | None:
        """Called by the training thread after each step: the reason, if this is the last one. A step that is left out
        (--bad_loss rollback) is none: where the ranks agreed on such a step, the next one is the last."""
        self.done = step
        if not self.promised:
            return None
        self.agreed.wait()
        self.left = self.last is not None and step >= self.last
        return self.reason if self.left else None

    def close(self) -> None:
        """The training is over, here and so everywhere: who asks from now on gets no step. The thread must not be
        inside the store when the interpreter ends: that aborts."""
        if self.thread.is_alive():
            threading.Thread(target=self._say, args=(_OVER,), name="raymb-ask", daemon=True).start()
            self.thread.join(timeout=5)

    def _say(self, what: str) -> None:
        """The first one counts, of all that any rank says. `compare_set` wakes nobody in a store without libuv."""
        try:
            with contextlib.suppress(RuntimeError):
                self.voice.compare_set("raymb/stop/asked", "", what)
                self.voice.set("raymb/stop", "")
        finally:
            self.speaks = False

    def _run(self) -> None:
        try:
            with contextlib.suppress(RuntimeError):  # torch's: the store is gone with its rank, or a rank says nothing
                self._agree()
        finally:  # nobody may wait here for ever
            self.agreed.set()

    def _agree(self) -> None:
        self._wait()
        self.reason = self.store.get("raymb/stop/asked").decode()
        if self.reason == _OVER:
            return
        # The order matters: a training thread that finishes a step between these two lines finds the promise and waits.
        self.promised = True
        self.store.set(f"raymb/stop/promise/{self.rank}", str(self.done + 1))
        if self.rank == 0:
            promises = (int(self.store.get(f"raymb/stop/promise/{rank}")) for rank in range(self.world_size))
            self.store.set("raymb/stop/last", str(max(promises)))
        self.last = int(self.store.get("raymb/stop/last"))

    def _wait(self) -> None:
        from torch.distributed import DistStoreError

        while True:
            with contextlib.suppress(DistStoreError):  # the time is up
                return self.store.wait(["raymb/stop"], _AT_A_TIME)

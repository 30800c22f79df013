"""All ranks leave the training loop after the same step, without a collective on the step's path.

Any rank may ask (a signal, a notice of preemption, the driver). Threads beside the training agree over torch's
key-value store: each rank promises the latest step at which it will look again, the largest promise is the last step.
Until the answer is there a rank waits after the step it promised, so nobody runs past it; and a rank that waits has
done its part of every step that the others still have to finish, so nobody is waited for in vain.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any, Protocol

_SECONDS_BETWEEN_LOOKS = 0.2
_LOOKS_A_SECOND = 2000
"""Of all ranks together, at the one store."""


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str) -> Any: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class StopTogether:
    """A rank's end of the agreement.

    Args:
        store: a connection of its own to the store that all ranks of this start share.
    """

    def __init__(self, store: Store, rank: int, world_size: int):
        self.store, self.rank, self.world_size = store, rank, world_size
        self.period = max(_SECONDS_BETWEEN_LOOKS, world_size / _LOOKS_A_SECOND)
        self.prefix = "raymb/stop"
        self.done = 0
        self.promised = False
        self.wanted = ""
        self.reason = ""
        self.last: int | None = None
        self.left = False
        self.asked = threading.Event()
        self.agreed = threading.Event()
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-stop", daemon=True)

    def start(self, step: int) -> None:
        """The training begins after this step."""
        self.done = step
        self.thread.start()

    def ask(self, reason: str) -> None:
        """Stop all ranks. From any thread; the first reason that arrives counts."""
        self.wanted = self.wanted or reason
        self.asked.set()

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
        """The training is over. The thread must not be inside the store when the interpreter ends: that aborts."""
        self.closed.set()
        self.asked.set()
        if self.thread.is_alive():
            self.thread.join(timeout=5)

    def _run(self) -> None:
        try:
            with contextlib.suppress(RuntimeError):  # torch's: the store is gone with its rank, or a rank says nothing
                self._agree()
        finally:  # nobody may wait here for ever
            self.agreed.set()

    def _agree(self) -> None:
        asked = f"{self.prefix}/asked"
        while not self.store.check([asked]):
            if self.closed.is_set():  # the training is over, here and so everywhere: who asks now gets no step
                self._promise()
                self._decide(self.done + 1)
                return
            self.asked.wait(self.period)
            if self.wanted and not self.store.check([asked]):
                self.store.set(asked, self.wanted)
        # The order matters: a training thread that finishes a step between these two lines finds the promise and waits.
        self.promised = True
        self._promise()
        if self.rank == 0:
            self._decide(max(int(self.store.get(f"{self.prefix}/promise/{rank}")) for rank in range(self.world_size)))
        last = int(self.store.get(f"{self.prefix}/last"))
        self.reason = self.store.get(asked).decode()  # after the last promise nobody writes another reason
        self.last = last

    def _promise(self) -> None:
        self.store.set(f"{self.prefix}/promise/{self.rank}", str(self.done + 1))

    def _decide(self, step: int) -> None:
        if self.rank == 0:
            self.store.set(f"{self.prefix}/last", str(step))

"""The path of a metrics record from a rank to the driver. Nothing here is on a training step's path.

A rank puts a record into a queue in its own memory; a thread there sends what has gathered, a few times a second,
to one Ray actor; the driver takes it from there as often, and the actor forgets what the driver says that it has.
`ray.train.report` is no such path: it is a barrier that the controller polls (2 s a step).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from raymb.telemetry.records import RankStatus, Record

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_SENDS = 0.25
_SENDS_A_SECOND = 4000
"""Of all ranks together: beyond that each sends less often, and no actor is overrun."""
_SECONDS_BETWEEN_QUESTIONS = 0.5
_LAST_ROUNDS = 3  # of a driver that closes while the hub does not answer


@ray.remote(num_cpus=0)
class Hub:
    """Holds records until the driver has them, and the driver's request until the ranks take it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.delivered = 0
        self.command = ""
        self.checkpoint = 0
        self.seconds_of_a_save = 0.0

    def push(self, records: list[Record]) -> str:
        """Take records; answer with what the ranks are asked to do, "" for nothing."""
        self.records += records
        for record in records:
            if record["kind"] == "checkpoint":
                self.checkpoint, self.seconds_of_a_save = record["step"], record.get("seconds", 0.0)
        return self.command

    def ask(self, command: str) -> None:
        """Ask the ranks to stop, for this reason, until they have."""
        self.command = command

    def fulfilled(self, command: str) -> None:
        """The ranks have done what they were asked, unless they are asked for something else by now."""
        if self.command == command:
            self.command = ""

    def last_save(self) -> float:
        """Seconds that the newest checkpoint took, 0 for none."""
        return self.seconds_of_a_save

    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint that was written in this job, 0 for none."""
        return self.checkpoint

    def take(self, acknowledged: int) -> tuple[int, list[Record]]:
        """All records behind one, with the number of the last.

        Args:
            acknowledged: the number that came with the answer before. What it covers is forgotten now, and not when it
                was handed over: an answer may be lost, or come too late.
        """
        del self.records[: max(0, acknowledged - self.delivered)]
        self.delivered = max(self.delivered, acknowledged)
        return self.delivered + len(self.records), list(self.records)


class Sender:
    """A rank's end: `emit` returns at once, a thread does the sending.

    Args:
        status: the rank's status; it is sent when the phase has changed. The steps within one are told by their parts.
        listens: whether this rank asks for the driver's requests; one of them does.
        ranks: that send to the same hub.
    """

    def __init__(self, hub: Any, status: Callable[[], RankStatus] | None = None, listens: bool = False, ranks: int = 1):
        self.hub = hub
        self.period = max(_SECONDS_BETWEEN_SENDS, ranks / _SENDS_A_SECOND)
        self.status = status
        self.listens = listens
        self.on_command: Callable[[str], None] = lambda command: None
        self.on_tick: Callable[[], Any] = lambda: None
        self.last_status: RankStatus | None = None
        self.asked = time.monotonic()
        self.woken = threading.Event()
        self.queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.sent: Any = None  # the newest push; the actor runs them in order
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-metrics", daemon=True)
        self.thread.start()

    def emit(self, record: Record) -> None:
        self.queue.put(record)

    def wake(self) -> None:
        """Send now: something has begun that may end badly."""
        self.woken.set()

    def close(self) -> None:
        """Send what is left and wait until everything has arrived. A lost hub fails no training."""
        self.closing.set()
        self.woken.set()
        self.thread.join(timeout=10)
        self._send()
        if self.sent is not None:
            with contextlib.suppress(RayError):
                ray.get(self.sent, timeout=10)

    def _run(self) -> None:
        while not self.closing.is_set():
            self.woken.wait(self.period)
            self.woken.clear()
            with contextlib.suppress(Exception):  # of Ray's inner parts; metrics go on without it
                self.on_tick()
            self._send()
            self._listen()

    def _send(self) -> None:
        records: list[Record] = list(self._changed_status())
        with contextlib.suppress(queue.Empty):
            while True:
                records.append(self.queue.get_nowait())
        if records:
            self.sent = self.hub.push.remote(records)

    def _changed_status(self) -> Iterator[RankStatus]:
        status = self.status() if self.status else None
        if status and (self.last_status is None or status["in"] != self.last_status["in"]):
            self.last_status = status
            yield status

    def _listen(self) -> None:
        if self.listens and time.monotonic() - self.asked >= _SECONDS_BETWEEN_QUESTIONS:
            self.asked = time.monotonic()
            with contextlib.suppress(RayError):
                command: Any = ray.get(self.hub.push.remote([]), timeout=10)
                if command:
                    self.on_command(command)


class Receiver:
    """The driver's end: a thread that hands every record to `handle`, in order.

    Args:
        hub: the actor.
        handle: called on this thread with each record, and with None several times a second (to keep time).
    """

    def __init__(self, hub: Any, handle: Callable[[Record | None], None]):
        self.hub = hub
        self.handle = handle
        self.failed = False
        self.received = 0
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-telemetry", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop after the last record."""
        self.closing.set()
        self.thread.join(timeout=30)

    def _run(self) -> None:
        rounds = _LAST_ROUNDS
        while rounds:
            closing = self.closing.wait(_SECONDS_BETWEEN_SENDS)
            answered = self._take()
            rounds = rounds if not closing else 0 if answered else rounds - 1
            self._handle(None)

    def _take(self) -> bool:
        """Hand over what has come; False where it may still be asked for: the answer did not come in time."""
        try:
            self.received, records = ray.get(self.hub.take.remote(self.received), timeout=10)
        except GetTimeoutError:
            return False
        except RayError:
            return True
        for record in records:
            self._handle(record)
        return True

    def _handle(self, record: Record | None) -> None:
        """A record that cannot be written (a full disk) must not end this thread, which also keeps the lock alive."""
        try:
            self.handle(record)
        except Exception as error:
            if not self.failed:
                self.failed = True
                logger.warning("metrics are incomplete from here on: %s: %s", type(error).__name__, error)

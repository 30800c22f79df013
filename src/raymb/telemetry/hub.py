"""The path of a metrics record from a rank to the driver. Nothing here is on a training step's path.

A rank puts a record into a queue in its own memory; a thread there sends what has gathered, a few times a second,
to one Ray actor; the driver empties that actor as often. `ray.train.report` is no such path: it is a barrier that
the controller polls (2 s a step).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

logger = logging.getLogger(__name__)
Record = dict[str, Any]
_SECONDS_BETWEEN_SENDS = 0.25


@ray.remote(num_cpus=0)
class Hub:
    """Holds records until the driver takes them."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def push(self, records: list[Record]) -> None:
        self.records += records

    def take(self) -> list[Record]:
        records, self.records = self.records, []
        return records


class Sender:
    """A rank's end: `emit` returns at once, a thread does the sending."""

    def __init__(self, hub: Any):
        self.hub = hub
        self.queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.sent: Any = None  # the newest push; the actor runs them in order
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-metrics", daemon=True)
        self.thread.start()

    def emit(self, record: Record) -> None:
        self.queue.put(record)

    def close(self) -> None:
        """Send what is left and wait until everything has arrived. A lost hub fails no training."""
        self.closing.set()
        self.thread.join(timeout=10)
        self._send()
        if self.sent is not None:
            with contextlib.suppress(RayError):
                ray.get(self.sent, timeout=10)

    def _run(self) -> None:
        while not self.closing.wait(_SECONDS_BETWEEN_SENDS):
            self._send()

    def _send(self) -> None:
        records = []
        with contextlib.suppress(queue.Empty):
            while True:
                records.append(self.queue.get_nowait())
        if records:
            self.sent = self.hub.push.remote(records)


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
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-telemetry", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Stop after the last record."""
        self.closing.set()
        self.thread.join(timeout=30)

    def _run(self) -> None:
        last_round = False
        while not last_round:
            last_round = self.closing.wait(_SECONDS_BETWEEN_SENDS)
            with contextlib.suppress(RayError):
                for record in ray.get(self.hub.take.remote(), timeout=10):
                    self._handle(record)
            self._handle(None)

    def _handle(self, record: Record | None) -> None:
        """A record that cannot be written (a full disk) must not end this thread, which also keeps the lock alive."""
        try:
            self.handle(record)
        except Exception as error:
            if not self.failed:
                self.failed = True
                logger.warning("metrics are incomplete from here on: %s: %s", type(error).__name__, error)

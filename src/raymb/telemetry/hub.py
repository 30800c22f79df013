"""The path of a metrics record from a rank to the driver. Nothing here is on a training step's path.

A rank puts a record into a queue in its own memory; a thread there sends what has gathered, a few times a second,
to one Ray actor; the driver empties that actor as often. `ray.train.report` is no such path: it is a barrier that
the controller polls (2 s a step).
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

import ray

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
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-metrics", daemon=True)
        self.thread.start()

    def emit(self, record: Record) -> None:
        self.queue.put(record)

    def close(self) -> None:
        """Send what is left and wait until it has arrived."""
        self.closing.set()
        self.thread.join(timeout=10)
        self._send(wait=True)

    def _run(self) -> None:
        while not self.closing.wait(_SECONDS_BETWEEN_SENDS):
            self._send(wait=False)

    def _send(self, wait: bool) -> None:
        records = []
        with contextlib.suppress(queue.Empty):
            while True:
                records.append(self.queue.get_nowait())
        if records:
            sent = self.hub.push.remote(records)
            if wait:
                ray.get(sent, timeout=10)


class Receiver:
    """The driver's end: a thread that hands every record to `handle`, in order.

    Args:
        hub: the actor.
        handle: called on this thread with each record, and with None several times a second (to keep time).
    """

    def __init__(self, hub: Any, handle: Callable[[Record | None], None]):
        self.hub = hub
        self.handle = handle
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
            with contextlib.suppress(ray.exceptions.RayError):
                for record in ray.get(self.hub.take.remote(), timeout=10):
                    self.handle(record)
            self.handle(None)

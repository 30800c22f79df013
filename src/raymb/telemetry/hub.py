"""The path of a metrics record from a rank to the driver. Nothing here is on a training step's path.

A rank puts a record into a queue in its own memory; a thread there sends what has gathered, a few times a second,
to one Ray actor, the hub; the driver takes it from there as often, and the hub forgets what the driver says it has.
Of a run on several nodes each has a relay, an actor to which its ranks send: the hub hears nodes, not ranks.
`ray.train.report` is no such path: it is a barrier that the controller polls (2 s a step).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymb.telemetry.records import RankStatus, Record

logger = logging.getLogger(__name__)
_SECONDS_BETWEEN_SENDS = 0.25
_MESSAGES_A_SECOND = 500
"""Of all relays together: of more nodes each sends less often, and no hub is overrun."""
_UNANSWERED = 8
"""Messages of a rank that may be under way at once."""
_SECONDS_TO_ARRIVE = 10.0
_SECONDS_FOR_A_RELAY = 60.0
_LAST_ROUNDS = 3  # of a driver that closes while the hub does not answer

type Batch = tuple[str, int, list[Record]]
"""Who sends, its how many-th batch this is, and what is in it."""


@ray.remote(num_cpus=0)
class Hub:
    """Holds records until the driver has them, and the driver's request until the ranks take it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.delivered = 0
        self.command = ""
        self.checkpoint = 0
        self.seconds_of_a_save = 0.0
        self.numbers: dict[str, int] = {}
        self.relays: dict[str, tuple[Any, int]] = {}

    def receive(self, batches: list[Batch]) -> dict[str, int]:
        """Take what ranks have sent, of each the next batch and no other: what gets lost is sent again.

        Returns:
            by sender, the number of the last batch that is here.
        """
        for sender, number, records in batches:
            if number == self.numbers.get(sender, 0) + 1:
                self.numbers[sender] = number
                self.push(records)
        return {sender: self.numbers.get(sender, 0) for sender, _, _ in batches}

    def push(self, records: list[Record]) -> None:
        self.records += records
        for record in records:
            if record["kind"] == "checkpoint":
                self.checkpoint, self.seconds_of_a_save = record["step"], record.get("seconds", 0.0)

    def relay(self, node: str, ranks: int, nodes: int) -> Any:
        """The actor that the ranks of a node send to. Each asks for it once, and then it is forgotten here: it ends
        when they have ended, and keeps no node from being given back.

        Args:
            node: Ray's id of it.
            ranks: on this node.
            nodes: of the run.
        """
        relay, left = self.relays.pop(node, (None, ranks))
        if relay is None:
            here = NodeAffinitySchedulingStrategy(node, soft=False)
            hub = ray.get_runtime_context().current_actor
            relay = Relay.options(scheduling_strategy=here).remote(hub, seconds_between_messages(nodes))
        if left > 1:
            self.relays[node] = relay, left - 1
        return relay

    def ask(self, command: str) -> None:
        """Ask the ranks to stop, for this reason, until they have."""
        self.command = command

    def wanted(self) -> str:
        """What the ranks are asked to do, "" for nothing."""
        return self.command

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


def seconds_between_messages(nodes: int) -> float:
    """Of a relay, where there are so many."""
    return max(_SECONDS_BETWEEN_SENDS, nodes / _MESSAGES_A_SECOND)


@ray.remote(num_cpus=0)
class Relay:
    """Makes one message to the hub of what a node's ranks send meanwhile. It keeps nothing: they have their answer when
    the hub has the records, and send again what a relay took with it.

    Args:
        period: seconds from message to message; one that comes after so long waits for nothing.
    """

    def __init__(self, hub: Any, period: float):
        self.hub, self.period = hub, period
        self.gathered: list[Batch] = []
        self.sending: asyncio.Task[dict[str, int]] | None = None
        self.sent = 0.0

    async def receive(self, batches: list[Batch]) -> dict[str, int]:
        self.gathered += batches
        if self.sending is None:
            self.sending = asyncio.create_task(self._send())
        return await self.sending

    async def _send(self) -> dict[str, int]:
        await asyncio.sleep(self.sent + self.period - time.monotonic())
        self.sent = time.monotonic()
        gathered, self.gathered, self.sending = self.gathered, [], None
        return await self.hub.receive.remote(gathered)


class Sender:
    """A rank's end: `emit` returns at once, a thread does the sending.

    Args:
        status: the rank's status; it is sent when the phase has changed. The steps within one are told by their parts.
        listens: whether this rank asks for the driver's requests; one of them does.
        relay: reference to the node's relay, once there is one. Until then, and when it is lost, this rank sends to the
            hub itself.
    """

    def __init__(
        self, hub: Any, status: Callable[[], RankStatus] | None = None, listens: bool = False, relay: Any = None
    ):
        self.hub = self.to = hub
        self.status = status
        self.listens = listens
        self.on_command: Callable[[str], None] = lambda command: None
        self.on_tick: Callable[[], Any] = lambda: None
        self.last_status: RankStatus | None = None
        self.asked: Future[str] | None = None
        self.woken = threading.Event()
        self.queue: queue.SimpleQueue[Record] = queue.SimpleQueue()
        self.name, self.number = uuid.uuid4().hex, 0
        self.batches: list[Batch] = []  # that the hub may not have yet
        self.answers: deque[tuple[Any, Future[dict[str, int]]]] = deque()  # each with whom was told
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="raymb-metrics", daemon=True)
        self.thread.start()
        if relay is not None:
            threading.Thread(target=self._change_to, args=(relay,), name="raymb-relay", daemon=True).start()

    def emit(self, record: Record) -> None:
        self.queue.put(record)

    def wake(self) -> None:
        """Send now: something has begun that may end badly."""
        self.woken.set()

    def close(self) -> None:
        """Send what is left and wait until everything has arrived. A lost hub fails no training."""
        self.closing.set()
        self.woken.set()
        self.thread.join(timeout=_SECONDS_TO_ARRIVE)
        deadline = time.monotonic() + _SECONDS_TO_ARRIVE
        self._send()
        while self.batches and time.monotonic() < deadline:
            wait([answer for _, answer in self.answers][:1], timeout=0.1)
            self._send()

    def _change_to(self, relay: Any) -> None:
        with contextlib.suppress(RayError):
            relay = ray.get(relay, timeout=_SECONDS_FOR_A_RELAY)
            ray.get(relay.receive.remote([]), timeout=_SECONDS_FOR_A_RELAY)
            self.to = relay

    def _run(self) -> None:
        while not self.closing.is_set():
            self.woken.wait(_SECONDS_BETWEEN_SENDS)
            self.woken.clear()
            self._turn()

    def _turn(self) -> None:
        with contextlib.suppress(Exception):  # of Ray's inner parts; metrics go on without it
            self.on_tick()
        self._send()
        if self.listens:
            self._listen()

    def _send(self) -> None:
        self._forget_what_arrived()
        if len(self.answers) >= _UNANSWERED:  # what comes meanwhile goes with the next
            return
        records: list[Record] = list(self._changed_status())
        with contextlib.suppress(queue.Empty):
            while True:
                records.append(self.queue.get_nowait())
        if records:
            self.number += 1
            self.batches.append((self.name, self.number, records))
            self._send_batches(self.batches[-1:])

    def _send_batches(self, batches: list[Batch]) -> None:
        to = self.to
        self.answers.append((to, to.receive.remote(batches).future()))

    def _forget_what_arrived(self) -> None:
        """What is not there although every message has its answer, or has failed, is sent again."""
        while self.answers and self.answers[0][1].done():
            told, answer = self.answers.popleft()
            try:
                arrived = answer.result()[self.name]
                self.batches = [batch for batch in self.batches if batch[1] > arrived]
            except RayError as error:
                if told is self.hub and isinstance(error, ActorDiedError):
                    self.batches = []  # nobody is left to tell
                self.to = self.hub
        if self.batches and not self.answers:
            self._send_batches(self.batches)

    def _changed_status(self) -> Iterator[RankStatus]:
        status = self.status() if self.status else None
        if status and (self.last_status is None or status["in"] != self.last_status["in"]):
            self.last_status = status
            yield status

    def _listen(self) -> None:
        """Beside what is sent, and without waiting: one turn asks, a later one finds the answer."""
        if self.asked is None:
            self.asked = self.hub.wanted.remote().future()
        elif self.asked.done():
            command = "" if self.asked.exception() else self.asked.result()
            self.asked = None
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

"""A record's way from a rank to the driver, by a real hub."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError

from raymb.telemetry import hub
from raymb.telemetry.hub import Receiver, Sender


class _Method:
    def __init__(self, function: Any):
        self.remote = function


class _Lost:
    """What a call of an actor returns whose answer never comes."""

    def __init__(self, error: Exception):
        self.error = error

    def future(self) -> Future[Any]:
        answer: Future[Any] = Future()
        answer.set_exception(self.error)
        return answer


class _Unanswered:
    """What a call of an actor returns whose answer is to come."""

    def __init__(self) -> None:
        self.answer: Future[Any] = Future()
        self.asked = False

    def future(self) -> Future[Any]:
        self.asked = True
        return self.answer


class Connection:
    """A way to the hub, on which messages to it may be lost."""

    def __init__(self, actor: Any) -> None:
        self.messages = 0
        self.loses: Callable[[int], Exception | None] = lambda message: None
        self.receive = _Method(self._receive)
        self.actor, self.take, self.wanted = actor, actor.take, actor.wanted

    def _receive(self, batches: list[Any]) -> Any:
        self.messages += 1
        error = self.loses(self.messages)
        return self.actor.receive.remote(batches) if error is None else _Lost(error)


@pytest.fixture
def way(new_hub: Any, monkeypatch: pytest.MonkeyPatch) -> Connection:
    """To a hub, with little waiting."""
    get = ray.get
    # A sender asks Ray for the relay that is coming; here it has a way to it already.
    monkeypatch.setattr(
        hub.ray, "get", lambda one, timeout=None: one if isinstance(one, Connection) else get(one, timeout=timeout)
    )
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 0.01)
    return Connection(new_hub)


def _records(actor: Any) -> list[Any]:
    """What the hub holds."""
    return ray.get(actor.__ray_call__.remote(lambda hub: hub.records))


def _steps(actor: Any) -> list[int]:
    return [record["step"] for record in _records(actor)]


@contextmanager
def _occupied(actor: Any, place: Path) -> Iterator[None]:
    """The hub answers nobody."""

    def wait(hub: Any, over: str) -> None:
        import os
        import time

        while not os.path.exists(over):
            time.sleep(0.01)

    answer = actor.__ray_call__.remote(wait, str(place / "over"))
    try:
        yield
    finally:
        (place / "over").touch()
        ray.get(answer)


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_sender_sends_in_order_and_nothing_is_left_at_close(way: Connection) -> None:
    sender = Sender(way)
    for step in range(200):
        sender.emit(_part(step))
    sender.close()
    assert _steps(way.actor) == list(range(200))
    assert sender.batches == [], "what has arrived is forgotten"


def test_close_waits_for_what_was_sent_before(way: Connection) -> None:
    sender = Sender(way)
    way.actor.__ray_call__.remote(lambda actor: time.sleep(0.5))
    sender.emit(_part(1))
    _until(lambda: way.messages == 1)
    began = time.monotonic()
    sender.close()
    assert 0.2 < time.monotonic() - began < 5 and way.messages == 1
    assert _steps(way.actor) == [1]


def test_sender_with_nothing_to_say_asks_for_nothing(way: Connection) -> None:
    Sender(way).close()
    assert way.messages == 0


def test_lost_hub_fails_no_training(way: Connection) -> None:
    lost = hub.Hub.remote()
    ray.get(lost.last_save.remote())
    ray.kill(lost)
    way = Connection(lost)
    sender = Sender(way)
    sender.emit(_part(1))
    began = time.monotonic()
    sender.close()
    assert time.monotonic() - began < 5 and way.messages == 1


def test_emit_does_not_wait_for_the_hub(way: Connection) -> None:
    busy, receive = threading.Event(), way.receive.remote
    way.receive = _Method(lambda batches: (busy.wait(5), receive(batches))[1])
    sender = Sender(way)
    rounds = []  # a machine may stall in one of them
    for _ in range(3):
        began = time.monotonic()
        for step in range(1000):
            sender.emit(_part(step))
        rounds.append(time.monotonic() - began)
    assert min(rounds) < 1
    busy.set()
    sender.close()


def test_a_hub_that_does_not_answer_is_not_overrun(way: Connection, tmp_path: Path) -> None:
    """What comes meanwhile is one message then."""
    sender = Sender(way)
    with _occupied(way.actor, tmp_path):
        for step in range(20):
            sender.emit(_part(step))
            time.sleep(0.03)
        assert way.messages == 8
    sender.close()
    assert _steps(way.actor) == list(range(20)) and way.messages == 9


@pytest.mark.parametrize("arrives", [True, False])
def test_a_message_that_has_failed_is_sent_again_and_counts_once(way: Connection, arrives: bool) -> None:
    """Ray loses a connection for a while: the message had arrived, or had not."""
    chance = random.Random(5)
    failed = []

    def loses(message: int) -> Exception | None:
        if message > 60 or chance.random() < 0.5:
            return None
        failed.append(message)
        return ActorUnavailableError("the connection was lost", None)

    if arrives:
        receive = way.receive.remote

        def answer_is_lost(batches: list[Any]) -> Any:
            reference, error = receive(batches), loses(way.messages)
            return reference if error is None else _Lost(error)

        way.receive = _Method(answer_is_lost)
    else:
        way.loses = loses
    sender = Sender(way)
    for step in range(100):
        sender.emit(_part(step))
        time.sleep(0.003)
    sender.close()
    assert len(failed) > 3 and _steps(way.actor) == list(range(100)), "each once, in order"


def test_what_a_relay_took_with_it_goes_to_the_hub(way: Connection) -> None:
    relay = Connection(way.actor)
    relay.loses = lambda message: ActorDiedError() if message > 3 else None
    sender = Sender(way, relay=relay)  # the first message to it is empty
    _until(lambda: sender.to is relay)
    for step in range(30):
        sender.emit(_part(step))
        time.sleep(0.01)
    sender.close()
    assert sender.to is way and relay.messages > 3
    assert _steps(way.actor) == list(range(30)), "each once, in order"


def test_two_messages_that_a_relay_took_with_it_go_to_the_hub(way: Connection) -> None:
    """The second one's failure says nothing of the hub, to which the sender has turned by then."""
    relay, lost = Connection(way.actor), [_Unanswered(), _Unanswered()]
    sender, asked = Sender(way, relay=relay), iter(lost)
    _until(lambda: sender.to is relay)
    relay.receive = _Method(lambda batches: next(asked))
    for step, message in enumerate(lost):
        sender.emit(_part(step))
        _until(lambda message=message: message.asked)
    for message in lost:
        message.answer.set_exception(ActorDiedError())
    sender.close()
    assert _steps(way.actor) == [0, 1]


def test_until_there_is_a_relay_the_hub_hears_the_rank(way: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    relay, there, get = Connection(way.actor), threading.Event(), ray.get
    monkeypatch.setattr(hub.ray, "get", lambda one, timeout=None: (there.wait(timeout), get(one, timeout=timeout))[1])
    sender = Sender(way, relay=relay)
    sender.emit(_part(1))
    _until(lambda: way.messages == 1)
    there.set()
    _until(lambda: sender.to is relay)
    sender.emit(_part(2))
    sender.close()
    assert (way.messages, relay.messages) == (1, 2) and _steps(way.actor) == [1, 2]


def test_a_relay_that_never_comes_changes_nothing(way: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reference: Any, timeout: float) -> None:
        raise GetTimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(hub.ray, "get", fail)
        sender = Sender(way, relay=Connection(way.actor))
        sender.emit(_part(1))
        sender.close()
    assert _records(way.actor) == [_part(1)] and sender.to is way


def _part(step: int) -> dict[str, Any]:
    return {"kind": "part", "step": step}


def test_receiver_hands_over_every_record_in_order(way: Connection) -> None:
    seen: list[Any] = []
    way.actor.push.remote([_part(1)])
    receiver = Receiver(way, seen.append)
    _until(lambda: _part(1) in seen)
    way.actor.push.remote([_part(2), _part(3)])  # after this, close takes the rest
    receiver.close()
    assert [record["step"] for record in seen if record] == [1, 2, 3]
    assert None in seen
    assert not receiver.thread.is_alive()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_record_whose_answer_came_too_late_is_asked_for_again(
    way: Connection, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    """The hub had handed it over, and the driver had not waited long enough."""
    seen, get = [], hub.ray.get
    chance, late = random.Random(3), []

    def often_late(reference: Any, timeout: float) -> Any:
        answer = get(reference, timeout=timeout)
        if answer[1] and (chance.random() < 0.5 if not at_the_end else not late):
            late.append(reference)
            raise GetTimeoutError
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(hub.ray, "get", often_late)
        if at_the_end:
            patch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
        receiver = Receiver(way, seen.append)
        pushed = 0
        while pushed < 100 or not (at_the_end or len(late) > 3):
            way.actor.push.remote([_part(pushed), _part(pushed + 1)])
            pushed += 2
            time.sleep(0.002)
        if at_the_end:
            receiver.close()
    receiver.close()
    assert late and [record["step"] for record in seen if record] == list(range(pushed)), "each once, in order"
    assert at_the_end or len(_records(way.actor)) < pushed, "what the driver has is forgotten"


def test_receiver_that_closes_does_not_wait_for_ever(way: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(reference: Any, timeout: float) -> None:
        raise GetTimeoutError

    monkeypatch.setattr(hub.ray, "get", late)
    receiver = Receiver(way, lambda record: None)
    receiver.close()
    assert not receiver.thread.is_alive()


def test_receiver_outlives_a_failing_write_and_says_so_once(way: Connection, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def handle(record: Any) -> None:
        seen.append(record)
        if record:
            raise OSError(28, "No space left on device")

    way.actor.push.remote([_part(1), _part(2)])
    with caplog.at_level(logging.WARNING):
        receiver = Receiver(way, handle)
        _until(lambda: None in seen)
        receiver.close()
    assert [record["step"] for record in seen if record] == [1, 2]
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_receiver_outlives_a_hub_that_does_not_answer(way: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def lost(reference: Any, timeout: float) -> None:
        calls.append(reference)
        raise RayActorError

    monkeypatch.setattr(hub.ray, "get", lost)
    seen: list[Any] = []
    receiver = Receiver(way, seen.append)
    _until(lambda: len(calls) >= 2)
    receiver.close()
    assert set(seen) == {None}


# The actor


def _hub() -> Any:
    """The actor's class, in this process."""
    return hub.Hub.__ray_metadata__.modified_class()


def test_hub_holds_records_until_they_are_taken() -> None:
    actor = _hub()
    actor.push([{"kind": "part", "step": 1}])
    actor.push([])
    actor.push([{"kind": "part", "step": 2}])
    for _ in range(2):  # until the driver says that it has them
        number, records = actor.take(0)
        assert (number, [record["step"] for record in records]) == (2, [1, 2])
    actor.push([{"kind": "part", "step": 3}])
    assert actor.take(2) == (3, [{"kind": "part", "step": 3}])
    assert actor.take(0) == (3, [{"kind": "part", "step": 3}]), "an old question that was on its way"
    assert actor.take(3) == (3, [])


def test_hub_tells_the_drivers_request_until_it_is_fulfilled() -> None:
    actor = _hub()
    assert actor.wanted() == ""
    actor.ask("resize")
    assert actor.wanted() == "resize" == actor.wanted()
    actor.ask("interrupted")
    actor.fulfilled("resize")
    assert actor.wanted() == "interrupted", "another request by now"
    actor.fulfilled("interrupted")
    assert actor.wanted() == ""


def test_hub_takes_the_next_batch_of_each_sender_and_no_other() -> None:
    actor = _hub()
    assert actor.receive([("a", 1, [_part(1)]), ("b", 1, [_part(2)]), ("a", 2, [_part(3)])]) == {"a": 2, "b": 1}
    assert actor.receive([("a", 2, [_part(3)]), ("b", 3, [_part(5)])]) == {"a": 2, "b": 1}, "one again, one too early"
    assert actor.receive([("b", 2, [_part(4)]), ("b", 3, [_part(5)])]) == {"b": 3}
    assert actor.receive([]) == {}
    assert [record["step"] for record in actor.records] == [1, 2, 3, 4, 5]


def test_hub_knows_the_newest_checkpoint_when_the_records_are_gone() -> None:
    actor = _hub()
    assert actor.newest_checkpoint() == 0
    actor.push([{"kind": "checkpoint", "step": 10}, {"kind": "part", "step": 11}])
    actor.push([{"kind": "checkpoint", "step": 20, "seconds": 7.5}])
    assert actor.last_save() == 7.5
    actor.take(3)
    assert actor.newest_checkpoint() == 20


# What a rank says of itself, and is asked


class Rank:
    """A sender's rank, and what the hub has heard from it."""

    def __init__(self, way: Connection, listens: bool = False) -> None:
        self.phase, self.step = "loading", 0
        self.way = way
        self.commands: list[str] = []
        self.ticks = 0
        self.sender = Sender(way, lambda: {"kind": "rank", "in": self.phase, "step": self.step}, listens)
        self.sender.on_command, self.sender.on_tick = self.commands.append, self._tick

    def _tick(self) -> None:
        self.ticks += 1

    def heard(self) -> list[str]:
        return [record.get("in", record["kind"]) for record in _records(self.way.actor)]


def test_a_status_is_sent_when_its_phase_has_changed(way: Connection) -> None:
    rank = Rank(way)
    _until(lambda: rank.heard() == ["loading"])
    rank.step, before = rank.step + 1, rank.ticks  # parts of steps tell that
    _until(lambda: rank.ticks > before + 3)
    assert rank.heard() == ["loading"]
    rank.phase = "first step"
    _until(lambda: len(rank.heard()) == 2)
    rank.phase = "exporting"
    rank.sender.close()
    assert rank.heard() == ["loading", "first step", "exporting"]


def test_a_status_stands_before_the_records_of_its_time(way: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
    rank = Rank(way)
    rank.sender.emit({"kind": "part"})
    rank.sender.close()
    assert rank.heard() == ["loading", "part"]


def test_relays_of_many_nodes_send_less_often() -> None:
    assert [hub.seconds_between_messages(nodes) for nodes in (1, 100, 512)] == [0.25, 0.25, 1.024]


def test_a_new_phase_is_told_at_once(way: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may die in the next quarter of a second, and then its last word is what the page says."""
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
    rank = Rank(way)
    began = time.monotonic()
    rank.sender.wake()
    _until(lambda: rank.heard() == ["loading"])
    assert time.monotonic() - began < 5
    rank.sender.close()


def test_the_rank_that_listens_hears_the_drivers_request(way: Connection) -> None:
    ranks = [Rank(way, listens=True), Rank(way)]
    _until(lambda: min(rank.ticks for rank in ranks) > 5)
    assert ranks[0].commands == [], "no wish is no command"
    way.actor.ask.remote("interrupted")
    _until(lambda: ranks[0].commands)
    for rank in ranks:
        rank.sender.close()
    assert set(ranks[0].commands) == {"interrupted"} and ranks[1].commands == []


def test_a_request_is_heard_while_records_have_no_answer(way: Connection) -> None:
    """Of a relay that waits for its next message."""
    waits: Future[Any] = Future()
    way.receive = _Method(lambda batches: SimpleNamespace(future=lambda: waits))
    rank = Rank(way, listens=True)
    way.actor.ask.remote("time")
    _until(lambda: rank.commands)
    waits.set_result({rank.sender.name: 1})
    rank.sender.close()


def test_a_hub_that_is_gone_leaves_the_rank_without_wishes(way: Connection) -> None:
    ray.kill(lost := hub.Hub.remote())
    rank = Rank(Connection(lost), listens=True)
    _until(lambda: rank.ticks > 5)
    assert rank.commands == [] and rank.sender.thread.is_alive()
    rank.sender.close()


# A node's relay


def _relayed(period: float, sends: Callable[[Any, Callable[[list[Any]], Any]], Any]) -> list[list[Any]]:
    """The messages that a hub gets while `sends(relay, hub's receive)` runs."""
    messages: list[list[Any]] = []
    actor = _hub()

    async def receive(batches: list[Any]) -> dict[str, int]:
        messages.append(batches)
        return actor.receive(batches)

    async def main() -> None:
        relay = hub.Relay.__ray_metadata__.modified_class(SimpleNamespace(receive=_Method(receive)), period)
        await sends(relay, receive)

    asyncio.run(main())
    return messages


def test_relay_makes_one_message_of_what_comes_within_a_period() -> None:
    async def sends(relay: Any, receive: Any) -> None:
        began = time.monotonic()
        assert await relay.receive([("a", 1, [_part(1)])]) == {"a": 1}
        assert time.monotonic() - began < 0.2, "one that comes after a while waits for nothing"
        answers = await asyncio.gather(*(relay.receive([(name, 1 + (name == "a"), [])]) for name in "abc"))
        assert 0.25 < time.monotonic() - began < 2
        assert [answer[name] for answer, name in zip(answers, "abc", strict=True)] == [2, 1, 1]

    messages = _relayed(0.3, sends)
    assert [[name for name, _, _ in batches] for batches in messages] == [["a"], ["a", "b", "c"]]


def test_who_sent_to_a_relay_hears_that_the_hub_is_lost() -> None:
    async def sends(relay: Any, receive: Any) -> None:
        async def fail(batches: list[Any]) -> None:
            raise ActorUnavailableError("the connection was lost", None)

        relay.hub.receive.remote = fail
        answers = await asyncio.gather(*(relay.receive([(name, 1, [])]) for name in "ab"), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ActorUnavailableError] * 2
        relay.hub.receive.remote = receive
        assert await relay.receive([("a", 1, [])]) == {"a": 1}, "the next message is one of its own"

    assert len(_relayed(0.01, sends)) == 1

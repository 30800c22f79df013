"""A record's way from a rank to the driver, with a hub in this process instead of a Ray actor."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError

from raymb.telemetry import hub
from raymb.telemetry.hub import Receiver, Sender


class _Method:
    def __init__(self, function: Any):
        self.remote = function


class _Reference:
    """What a call of an actor returns."""

    def __init__(self, answer: Any = None, error: Exception | None = None):
        self.answer: Future[Any] = Future()
        if error is not None:
            self.answer.set_exception(error)
        elif answer is not None:
            self.answer.set_result(answer)

    def future(self) -> Future[Any]:
        return self.answer


class FakeHub:
    """Its methods run at once. An answer of `receive` may be held back, and what comes to it may be lost."""

    def __init__(self) -> None:
        self.actor = _hub()
        self.messages = 0
        self.loses: Callable[[int], Exception | None] = lambda message: None
        self.held: list[_Reference] | None = None
        self.receive = _Method(self._receive)
        self.take = _Method(self.actor.take)
        self.wanted = _Method(lambda: _Reference(self.actor.wanted()))

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.actor.records

    def _receive(self, batches: list[Any]) -> _Reference:
        self.messages += 1
        error = self.loses(self.messages)
        if error is not None:
            return _Reference(error=error)
        answer = self.actor.receive(batches)
        if self.held is None:
            return _Reference(answer)
        self.held.append(_Reference())
        return self.held[-1]


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little, and ray.get answers with what it is given."""
    monkeypatch.setattr(hub.ray, "get", lambda reference, timeout: reference)
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 0.01)


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_sender_sends_in_order_and_nothing_is_left_at_close(waited: None) -> None:
    fake = FakeHub()
    sender = Sender(fake)
    for step in range(200):
        sender.emit(_part(step))
    sender.close()
    assert [record["step"] for record in fake.records] == list(range(200))
    assert sender.batches == [], "what has arrived is forgotten"


def test_close_waits_for_what_was_sent_before(waited: None) -> None:
    fake = FakeHub()
    fake.held = []
    sender = Sender(fake)
    sender.emit(_part(1))
    _until(lambda: fake.messages == 1)
    threading.Timer(0.3, lambda: fake.held[0].answer.set_result({sender.name: 1})).start()
    began = time.monotonic()
    sender.close()
    assert 0.2 < time.monotonic() - began < 5 and fake.messages == 1


def test_sender_with_nothing_to_say_asks_for_nothing(waited: None) -> None:
    fake = FakeHub()
    Sender(fake).close()
    assert fake.messages == 0


def test_lost_hub_fails_no_training(waited: None) -> None:
    fake = FakeHub()
    fake.loses = lambda message: ActorDiedError()
    sender = Sender(fake)
    sender.emit(_part(1))
    began = time.monotonic()
    sender.close()
    assert time.monotonic() - began < 5 and fake.messages == 1


def test_emit_does_not_wait_for_the_hub(waited: None) -> None:
    fake, busy = FakeHub(), threading.Event()
    receive = fake.receive.remote
    fake.receive = _Method(lambda batches: (busy.wait(5), receive(batches))[1])
    sender = Sender(fake)
    rounds = []  # a machine may stall in one of them
    for _ in range(3):
        began = time.monotonic()
        for step in range(1000):
            sender.emit(_part(step))
        rounds.append(time.monotonic() - began)
    assert min(rounds) < 1
    busy.set()
    sender.close()


def test_a_hub_that_does_not_answer_is_not_overrun(waited: None) -> None:
    """What comes meanwhile is one message then."""
    fake = FakeHub()
    fake.held = []
    sender = Sender(fake)
    for step in range(20):
        sender.emit(_part(step))
        time.sleep(0.03)
    assert fake.messages == 8
    held, fake.held = fake.held, None
    for number, reference in enumerate(held, 1):
        reference.answer.set_result({sender.name: number})
    sender.close()
    assert [record["step"] for record in fake.records] == list(range(20)) and fake.messages == 9


@pytest.mark.parametrize("arrives", [True, False])
def test_a_message_that_has_failed_is_sent_again_and_counts_once(waited: None, arrives: bool) -> None:
    """Ray loses a connection for a while: the message had arrived, or had not."""
    fake, chance = FakeHub(), random.Random(5)
    failed = []

    def loses(message: int) -> Exception | None:
        if message > 60 or chance.random() < 0.5:
            return None
        failed.append(message)
        return ActorUnavailableError("the connection was lost", None)

    if arrives:
        receive = fake.receive.remote

        def answer_is_lost(batches: list[Any]) -> _Reference:
            reference, error = receive(batches), loses(fake.messages)
            return reference if error is None else _Reference(error=error)

        fake.receive = _Method(answer_is_lost)
    else:
        fake.loses = loses
    sender = Sender(fake)
    for step in range(100):
        sender.emit(_part(step))
        time.sleep(0.003)
    sender.close()
    assert len(failed) > 3 and [record["step"] for record in fake.records] == list(range(100)), "each once, in order"


def test_what_a_relay_took_with_it_goes_to_the_hub(waited: None) -> None:
    fake, relay = FakeHub(), FakeHub()
    relay.actor = fake.actor
    relay.loses = lambda message: ActorDiedError() if message > 3 else None
    sender = Sender(fake, relay=relay)  # the first message to it is empty
    _until(lambda: sender.to is relay)
    for step in range(30):
        sender.emit(_part(step))
        time.sleep(0.01)
    sender.close()
    assert sender.to is fake and relay.messages > 3
    assert [record["step"] for record in fake.records] == list(range(30)), "each once, in order"


def test_until_there_is_a_relay_the_hub_hears_the_rank(waited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, relay, there = FakeHub(), FakeHub(), threading.Event()
    relay.actor = fake.actor
    monkeypatch.setattr(hub.ray, "get", lambda reference, timeout: (there.wait(timeout), reference)[1])
    sender = Sender(fake, relay=relay)
    sender.emit(_part(1))
    _until(lambda: fake.messages == 1)
    there.set()
    _until(lambda: sender.to is relay)
    sender.emit(_part(2))
    sender.close()
    assert (fake.messages, relay.messages) == (1, 2) and [record["step"] for record in fake.records] == [1, 2]


def test_a_relay_that_never_comes_changes_nothing(waited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reference: Any, timeout: float) -> None:
        raise GetTimeoutError

    monkeypatch.setattr(hub.ray, "get", fail)
    fake = FakeHub()
    sender = Sender(fake, relay=FakeHub())
    sender.emit(_part(1))
    sender.close()
    assert fake.records == [_part(1)] and sender.to is fake


def _part(step: int) -> dict[str, Any]:
    return {"kind": "part", "step": step}


def test_receiver_hands_over_every_record_in_order(waited: None) -> None:
    fake, seen = FakeHub(), []
    fake.actor.push([_part(1)])
    receiver = Receiver(fake, seen.append)
    _until(lambda: _part(1) in seen)
    fake.actor.push([_part(2), _part(3)])  # after this, close takes the rest
    receiver.close()
    assert [record["step"] for record in seen if record] == [1, 2, 3]
    assert None in seen
    assert not receiver.thread.is_alive()


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_record_whose_answer_came_too_late_is_asked_for_again(
    waited: None, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    """The hub had handed it over, and the driver had not waited long enough."""
    fake, seen, get = FakeHub(), [], hub.ray.get
    chance, late = random.Random(3), []

    def often_late(reference: Any, timeout: float) -> Any:
        if reference[1] and (chance.random() < 0.5 if not at_the_end else not late):
            late.append(reference)
            raise GetTimeoutError
        return get(reference, timeout)

    monkeypatch.setattr(hub.ray, "get", often_late)
    if at_the_end:
        monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
    receiver = Receiver(fake, seen.append)
    for step in range(50):
        fake.actor.push([_part(2 * step), _part(2 * step + 1)])
        time.sleep(0.002)
    if not at_the_end:
        _until(lambda: len(late) > 3)
        monkeypatch.setattr(hub.ray, "get", get)
    receiver.close()
    assert late and [record["step"] for record in seen if record] == list(range(100)), "each once, in order"
    assert at_the_end or len(fake.records) < 100, "what the driver has is forgotten"


def test_receiver_that_closes_does_not_wait_for_ever(waited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(reference: Any, timeout: float) -> None:
        raise GetTimeoutError

    monkeypatch.setattr(hub.ray, "get", late)
    receiver = Receiver(FakeHub(), lambda record: None)
    receiver.close()
    assert not receiver.thread.is_alive()


def test_receiver_outlives_a_failing_write_and_says_so_once(waited: None, caplog: pytest.LogCaptureFixture) -> None:
    fake, seen = FakeHub(), []

    def handle(record: Any) -> None:
        seen.append(record)
        if record:
            raise OSError(28, "No space left on device")

    fake.actor.push([_part(1), _part(2)])
    with caplog.at_level(logging.WARNING):
        receiver = Receiver(fake, handle)
        _until(lambda: None in seen)
        receiver.close()
    assert [record["step"] for record in seen if record] == [1, 2]
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_receiver_outlives_a_hub_that_does_not_answer(waited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def lost(reference: Any, timeout: float) -> None:
        calls.append(reference)
        raise RayActorError

    monkeypatch.setattr(hub.ray, "get", lost)
    seen: list[Any] = []
    receiver = Receiver(FakeHub(), seen.append)
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

    def __init__(self, listens: bool = False) -> None:
        self.phase, self.step = "loading", 0
        self.fake = FakeHub()
        self.commands: list[str] = []
        self.ticks = 0
        self.sender = Sender(self.fake, lambda: {"kind": "rank", "in": self.phase, "step": self.step}, listens)
        self.sender.on_command, self.sender.on_tick = self.commands.append, self._tick

    def _tick(self) -> None:
        self.ticks += 1

    def heard(self) -> list[str]:
        return [record.get("in", record["kind"]) for record in self.fake.records]


def test_a_status_is_sent_when_its_phase_has_changed(waited: None) -> None:
    rank = Rank()
    _until(lambda: rank.ticks > 3)
    rank.step += 1  # parts of steps tell that
    _until(lambda: rank.ticks > 6)
    assert rank.heard() == ["loading"]
    rank.phase = "first step"
    _until(lambda: len(rank.heard()) == 2)
    rank.phase = "exporting"
    rank.sender.close()
    assert rank.heard() == ["loading", "first step", "exporting"]


def test_a_status_stands_before_the_records_of_its_time(waited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
    rank = Rank()
    rank.sender.emit({"kind": "part"})
    rank.sender.close()
    assert rank.heard() == ["loading", "part"]


def test_relays_of_many_nodes_send_less_often() -> None:
    assert [hub.seconds_between_messages(nodes) for nodes in (1, 100, 512)] == [0.25, 0.25, 1.024]


def test_a_new_phase_is_told_at_once(waited: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may die in the next quarter of a second, and then its last word is what the page says."""
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
    rank = Rank()
    began = time.monotonic()
    rank.sender.wake()
    _until(lambda: rank.heard() == ["loading"])
    assert time.monotonic() - began < 5
    rank.sender.close()


def test_the_rank_that_listens_hears_the_drivers_request(waited: None) -> None:
    ranks = [Rank(listens=True), Rank()]
    _until(lambda: min(rank.ticks for rank in ranks) > 5)
    assert ranks[0].commands == [], "no wish is no command"
    for rank in ranks:
        rank.fake.actor.ask("interrupted")
    _until(lambda: ranks[0].commands)
    for rank in ranks:
        rank.sender.close()
    assert set(ranks[0].commands) == {"interrupted"} and ranks[1].commands == []


def test_a_request_is_heard_while_records_have_no_answer(waited: None) -> None:
    rank = Rank(listens=True)
    rank.fake.held = []
    _until(lambda: rank.fake.held)
    rank.fake.actor.ask("time")
    _until(lambda: rank.commands)
    rank.fake.held[0].answer.set_result({rank.sender.name: 1})
    rank.sender.close()


def test_a_hub_that_is_gone_leaves_the_rank_without_wishes(waited: None) -> None:
    rank = Rank(listens=True)
    rank.fake.wanted = _Method(lambda: _Reference(error=RayActorError()))
    rank.fake.loses = lambda message: ActorDiedError()
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

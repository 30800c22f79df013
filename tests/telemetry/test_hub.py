"""A record's way from a rank to the driver, with a hub in this process instead of a Ray actor."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayActorError

from raymb.telemetry import hub
from raymb.telemetry.hub import Receiver, Sender


class _Method:
    def __init__(self, function: Any):
        self.remote = function


class FakeHub:
    """push and take run at once; what they return is what ray.get returns."""

    def __init__(self) -> None:
        self.actor = _hub()
        self.pushes = 0
        self.push = _Method(self._push)
        self.take = _Method(self.actor.take)

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.actor.records

    def _push(self, records: list[dict[str, Any]]) -> str:
        self.actor.push(records)
        self.pushes += 1
        return f"push {self.pushes}"


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ray.get was asked for."""
    asked: list[Any] = []

    def get(reference: Any, timeout: float) -> Any:
        asked.append(reference)
        return reference

    monkeypatch.setattr(hub.ray, "get", get)
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 0.01)
    return asked


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_sender_sends_in_order_and_nothing_is_left_at_close(waited: list[Any]) -> None:
    fake = FakeHub()
    sender = Sender(fake)
    for step in range(200):
        sender.emit(_part(step))
    sender.close()
    assert [record["step"] for record in fake.records] == list(range(200))
    assert waited == [f"push {fake.pushes}"]


def test_close_waits_for_what_was_sent_before(waited: list[Any]) -> None:
    fake = FakeHub()
    sender = Sender(fake)
    sender.emit(_part(1))
    _until(lambda: fake.pushes == 1)
    sender.close()
    assert waited == ["push 1"]


def test_sender_with_nothing_to_say_asks_for_nothing(waited: list[Any]) -> None:
    fake = FakeHub()
    Sender(fake).close()
    assert fake.pushes == 0 and waited == []


def test_lost_hub_fails_no_training(waited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(reference: Any, timeout: float) -> None:
        raise RayActorError

    monkeypatch.setattr(hub.ray, "get", lost)
    sender = Sender(FakeHub())
    sender.emit(_part(1))
    sender.close()


def test_emit_does_not_wait_for_the_hub(waited: list[Any]) -> None:
    fake, busy = FakeHub(), threading.Event()
    fake.push = _Method(lambda records: busy.wait(5))
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


def _part(step: int) -> dict[str, Any]:
    return {"kind": "part", "step": step}


def test_receiver_hands_over_every_record_in_order(waited: list[Any]) -> None:
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
    waited: list[Any], monkeypatch: pytest.MonkeyPatch, at_the_end: bool
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


def test_receiver_that_closes_does_not_wait_for_ever(waited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def late(reference: Any, timeout: float) -> None:
        raise GetTimeoutError

    monkeypatch.setattr(hub.ray, "get", late)
    receiver = Receiver(FakeHub(), lambda record: None)
    receiver.close()
    assert not receiver.thread.is_alive()


def test_receiver_outlives_a_failing_write_and_says_so_once(
    waited: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
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


def test_receiver_outlives_a_hub_that_does_not_answer(waited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_hub_answers_with_the_drivers_request_until_it_is_taken_back() -> None:
    actor = _hub()
    assert actor.push([]) == ""
    actor.ask("interrupted")
    assert actor.push([{"kind": "part", "step": 1}]) == "interrupted" == actor.push([])
    actor.ask("")
    assert actor.push([]) == ""


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
        self.phase, self.step, self.command = "loading", 0, ""
        self.fake = FakeHub()
        push = self.fake.push.remote
        self.fake.push = _Method(lambda records: (push(records), self.command)[1])
        self.commands: list[str] = []
        self.ticks = 0
        self.sender = Sender(self.fake, lambda: {"kind": "rank", "in": self.phase, "step": self.step}, listens)
        self.sender.on_command, self.sender.on_tick = self.commands.append, self._tick

    def _tick(self) -> None:
        self.ticks += 1

    def heard(self) -> list[str]:
        return [record.get("in", record["kind"]) for record in self.fake.records]


def test_a_status_is_sent_when_its_phase_has_changed(waited: list[Any]) -> None:
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


def test_a_status_stands_before_the_records_of_its_time(waited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
    rank = Rank()
    rank.sender.emit({"kind": "part"})
    rank.sender.close()
    assert rank.heard() == ["loading", "part"]


def test_many_ranks_send_less_often() -> None:
    periods = [Sender(FakeHub(), ranks=ranks) for ranks in (1, 1000, 4096)]
    for sender in periods:
        sender.close()
    assert [sender.period for sender in periods] == [0.25, 0.25, 4096 / 4000]


def test_a_new_phase_is_told_at_once(waited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process may die in the next quarter of a second, and then its last word is what the page says."""
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 60)
    rank = Rank()
    began = time.monotonic()
    rank.sender.wake()
    _until(lambda: rank.heard() == ["loading"])
    assert time.monotonic() - began < 5
    rank.sender.close()


def test_the_rank_that_listens_hears_the_drivers_request(waited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_QUESTIONS", 0.02)
    ranks = [Rank(listens=True), Rank()]
    _until(lambda: min(rank.ticks for rank in ranks) > 5)
    assert ranks[0].commands == [], "no wish is no command"
    for rank in ranks:
        rank.command = "interrupted"
    _until(lambda: ranks[0].commands)
    for rank in ranks:
        rank.sender.close()
    assert set(ranks[0].commands) == {"interrupted"} and ranks[1].commands == []


def test_a_hub_that_is_gone_leaves_the_rank_without_wishes(waited: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(reference: Any, timeout: float) -> None:
        raise RayActorError

    monkeypatch.setattr(hub.ray, "get", lost)
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_QUESTIONS", 0.02)
    rank = Rank(listens=True)
    _until(lambda: rank.ticks > 5)
    assert rank.commands == [] and rank.sender.thread.is_alive()
    rank.sender.close()

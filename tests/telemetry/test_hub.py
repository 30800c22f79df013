"""A record's way from a rank to the driver, with a hub in this process instead of a Ray actor."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest
from ray.exceptions import RayActorError

from raymb.telemetry import hub
from raymb.telemetry.hub import Receiver, Sender


class _Method:
    def __init__(self, function: Any):
        self.remote = function


class FakeHub:
    """push and take run at once; what they return is what ray.get returns."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.pushes = 0
        self.push = _Method(self._push)
        self.take = _Method(self._take)

    def _push(self, records: list[dict[str, Any]]) -> str:
        self.records += records
        self.pushes += 1
        return f"push {self.pushes}"

    def _take(self) -> list[dict[str, Any]]:
        records, self.records = self.records, []
        return records


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
        sender.emit({"step": step})
    sender.close()
    assert [record["step"] for record in fake.records] == list(range(200))
    assert waited == [f"push {fake.pushes}"]


def test_close_waits_for_what_was_sent_before(waited: list[Any]) -> None:
    fake = FakeHub()
    sender = Sender(fake)
    sender.emit({"step": 1})
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
    sender.emit({"step": 1})
    sender.close()


def test_emit_does_not_wait_for_the_hub(waited: list[Any]) -> None:
    fake, busy = FakeHub(), threading.Event()
    fake.push = _Method(lambda records: busy.wait(5))
    sender = Sender(fake)
    rounds = []  # a machine may stall in one of them
    for _ in range(3):
        began = time.monotonic()
        for step in range(1000):
            sender.emit({"step": step})
        rounds.append(time.monotonic() - began)
    assert min(rounds) < 1
    busy.set()
    sender.close()


def test_receiver_hands_over_every_record_in_order(waited: list[Any]) -> None:
    fake, seen = FakeHub(), []
    fake.records = [{"step": 1}]
    receiver = Receiver(fake, seen.append)
    _until(lambda: {"step": 1} in seen)
    fake.records = [{"step": 2}, {"step": 3}]  # after this, close takes the rest
    receiver.close()
    assert [record["step"] for record in seen if record] == [1, 2, 3]
    assert None in seen
    assert not receiver.thread.is_alive()


def test_receiver_outlives_a_failing_write_and_says_so_once(
    waited: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    fake, seen = FakeHub(), []

    def handle(record: Any) -> None:
        seen.append(record)
        if record:
            raise OSError(28, "No space left on device")

    fake.records = [{"step": 1}, {"step": 2}]
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
    assert [record["step"] for record in actor.take()] == [1, 2]
    assert actor.take() == []


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
    actor.push([{"kind": "checkpoint", "step": 10}, {"kind": "part", "step": 11}, {"kind": "checkpoint", "step": 20}])
    actor.take()
    assert actor.newest_checkpoint() == 20


# What a rank says of itself, and is asked


class Rank:
    """A sender's rank, and what the hub has heard from it."""

    def __init__(self, listens: bool = False) -> None:
        self.phase, self.command = "loading", ""
        self.fake = FakeHub()
        push = self.fake.push.remote
        self.fake.push = _Method(lambda records: (push(records), self.command)[1])
        self.commands: list[str] = []
        self.ticks = 0
        self.sender = Sender(self.fake, lambda: {"kind": "rank", "in": self.phase}, listens)
        self.sender.on_command, self.sender.on_tick = self.commands.append, self._tick

    def _tick(self) -> None:
        self.ticks += 1

    def heard(self) -> list[str]:
        return [record.get("in", record["kind"]) for record in self.fake.records]


def test_a_status_is_sent_when_it_has_changed(waited: list[Any]) -> None:
    rank = Rank()
    _until(lambda: rank.ticks > 3)
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

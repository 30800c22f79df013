"""Ranks that leave together: real stores of torch.distributed, a thread for each rank's training, random times."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from raymb.rank.stopping import StopTogether

MOST_RANKS = 6
SECONDS = 30.0  # after which something hangs


@pytest.fixture(scope="module")
def connections() -> Iterator[list[tuple[Any, Any]]]:
    """Two connections for each rank, to a store whose master is this process."""
    master = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield [(master.clone(), master.clone()) for _ in range(MOST_RANKS)]


def _stops(connections: list[tuple[Any, Any]], round_: str, world_size: int) -> list[StopTogether]:
    """Of the ranks of one start."""
    return [
        StopTogether(*(dist.PrefixStore(round_, one) for one in connections[rank]), rank, world_size)
        for rank in range(world_size)
    ]


class Collective:
    """What couples the steps of the ranks: a step ends when all others have come to it, or to the one `slack` steps
    before, as in a pipeline."""

    def __init__(self, world_size: int, slack: int):
        self.begun = [0] * world_size
        self.slack = slack
        self.changed = threading.Condition()

    def step(self, rank: int, number: int) -> None:
        with self.changed:
            self.begun[rank] = number
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: min(self.begun) >= number - self.slack, SECONDS), "a rank is missing"


class Rank:
    """Trains until it is told to leave, on a thread."""

    def __init__(self, stop: StopTogether, collective: Collective, seed: str, most: int, first: int = 0):
        self.stop, self.collective, self.random, self.most, self.first = (
            stop,
            collective,
            random.Random(seed),
            most,
            first,
        )
        self.left_after: int | None = None
        self.reason: str | None = None
        self.during: Callable[[int], None] = lambda step: None
        self.is_skipped: Callable[[int], bool] = lambda step: False
        self.thread = threading.Thread(target=self._train, daemon=True)

    def _train(self) -> None:
        self.stop.start(self.first)
        step = self.first
        while step < self.most:
            step += 1
            if self.is_skipped(step):
                continue
            self.during(step)
            time.sleep(self.random.choice((0, 0, 0.0005, 0.003)))
            self.collective.step(self.stop.rank, step)
            time.sleep(self.random.choice((0, 0, 0, 0.002)))
            self.reason = self.stop.leave_after(step)
            if self.reason is not None:
                self.left_after = step
                break
        self.stop.close()


def _ranks(
    stores: list[tuple[Any, Any]], round_: str, world_size: int, slack: int = 0, most: int = 100_000, first: int = 0
) -> list[Rank]:
    collective = Collective(world_size, slack)
    stops = _stops(stores, round_, world_size)
    return [Rank(stop, collective, f"{round_} {stop.rank}", most, first) for stop in stops]


def _finish(ranks: list[Rank]) -> None:
    deadline = time.monotonic() + SECONDS
    for rank in ranks:
        rank.thread.join(max(0.0, deadline - time.monotonic()))
        assert not rank.thread.is_alive(), f"rank {rank.stop.rank} hangs after step {rank.stop.done}"
    for rank in ranks:
        rank.stop.thread.join(max(0.0, deadline - time.monotonic()))
        assert not rank.stop.thread.is_alive(), f"rank {rank.stop.rank} still agrees"


@pytest.mark.parametrize("slack", [0, 1], ids=["in lockstep", "a step ahead"])
@pytest.mark.parametrize(("world_size", "rounds"), [(1, 40), (2, 150), (3, 80), (MOST_RANKS, 40)])
def test_all_leave_after_the_same_step_whoever_asks_whenever(
    connections: list[tuple[Any, Any]], world_size: int, rounds: int, slack: int
) -> None:
    chance, later = random.Random(7), 0
    for number in range(rounds):
        ranks = _ranks(connections, f"{world_size}-{slack}-{number}", world_size, slack)
        asking = chance.sample(ranks, chance.randint(1, world_size))
        threads = [
            threading.Timer(chance.uniform(0, 0.05), rank.stop.ask, (f"by {rank.stop.rank}",)) for rank in asking
        ]
        for thread in chance.sample([*threads, *(rank.thread for rank in ranks)], len(threads) + world_size):
            thread.start()
        _finish(ranks)
        assert len({rank.left_after for rank in ranks}) == 1 and ranks[0].left_after
        assert len({rank.reason for rank in ranks}) == 1
        assert ranks[0].reason in {f"by {rank.stop.rank}" for rank in asking}
        assert all(rank.stop.left for rank in ranks)
        later += ranks[0].left_after > 2
    assert later > rounds / 4, "every stop came before the training had begun"


@pytest.mark.parametrize("slack", [0, 1], ids=["in lockstep", "a step ahead"])
def test_a_stop_is_not_lost_with_a_step_that_is_left_out(connections: list[tuple[Any, Any]], slack: int) -> None:
    """Bridge goes over the steps of --bad_loss rollback without a callback, also when the ranks had agreed on one."""
    for number in range(60):
        ranks = _ranks(connections, f"skipped-{slack}-{number}", 3, slack, most=3000)
        for rank in ranks:
            rank.is_skipped = lambda step: step % 5 in (2, 3)
        ranks[number % 3].during = lambda step, stop=ranks[number % 3].stop: stop.ask("time") if step == 6 else None
        for rank in ranks:
            rank.thread.start()
        _finish(ranks)
        assert len({rank.left_after for rank in ranks}) == 1 and ranks[0].left_after, "nobody left"
        assert all(rank.stop.left and rank.reason == "time" for rank in ranks)


def test_the_training_thread_itself_may_ask(connections: list[tuple[Any, Any]]) -> None:
    for number in range(50):
        ranks = _ranks(connections, f"itself-{number}", 3)
        ranks[number % 3].during = lambda step, stop=ranks[number % 3].stop: stop.ask("itself") if step == 4 else None
        for rank in ranks:
            rank.thread.start()
        _finish(ranks)
        steps = {rank.left_after for rank in ranks}
        assert len(steps) == 1 and min(filter(None, steps)) >= 4


def test_steps_count_from_where_the_training_resumes(connections: list[tuple[Any, Any]]) -> None:
    ranks = _ranks(connections, "resumes", 2, first=1000)
    ranks[0].stop.ask("time")
    for rank in ranks:
        rank.thread.start()
    _finish(ranks)
    assert ranks[0].left_after == ranks[1].left_after
    assert 1000 < (ranks[0].left_after or 0) < 1100


def test_without_a_wish_all_come_to_their_end_and_the_threads_go(connections: list[tuple[Any, Any]]) -> None:
    ranks = _ranks(connections, "no request", 3, most=30)
    for rank in ranks:
        rank.thread.start()
    _finish(ranks)
    assert {(rank.left_after, rank.reason, rank.stop.done, rank.stop.left) for rank in ranks} == {
        (None, None, 30, False)
    }


def test_a_wish_at_the_very_end_lets_nobody_wait(connections: list[tuple[Any, Any]]) -> None:
    """The agreed step may lie after the last one; then all end as if nobody had asked, and so they do when one asks
    whose training is over. They end together, because Bridge's last checkpoint is a collective."""
    left = 0
    for number in range(100):
        ranks = _ranks(connections, f"end-{number}", 3, most=6)
        ends = threading.Barrier(3)
        for rank in ranks:
            rank.stop.close = lambda ends=ends, close=rank.stop.close: (ends.wait(SECONDS), close())[1]
        asks = threading.Timer(random.Random(number).uniform(0, 0.03), ranks[number % 3].stop.ask, ("time",))
        for thread in (asks, *(rank.thread for rank in ranks)):
            thread.start()
        _finish(ranks)
        asks.join()
        assert len({rank.left_after for rank in ranks}) == 1
        assert {rank.stop.left for rank in ranks} == {ranks[0].left_after is not None}
        left += ranks[0].left_after is not None
    assert 0 < left < 100, "this came to one end only"


@pytest.mark.parametrize("closed", [0, 1])
def test_a_rank_that_is_done_keeps_nobody_waiting(connections: list[tuple[Any, Any]], closed: int) -> None:
    stops = _stops(connections, f"done {closed}", 2)
    for stop in stops:
        stop.start(8)
    stops[closed].close()
    stops[closed].thread.join(SECONDS)
    stops[1 - closed].ask("time")
    assert stops[1 - closed].agreed.wait(SECONDS)
    assert stops[1 - closed].leave_after(8) is None and not stops[1 - closed].left


def test_two_wishes_at_once_have_one_reason(connections: list[tuple[Any, Any]]) -> None:
    """A rank that stops for time must not stop beside one that stops to be started again."""
    first = set()
    for number in range(40):
        stops = _stops(connections, f"two {number}", 3)
        for stop in stops:
            stop.start(0)
        for stop, wish in random.Random(number).sample([(stops[0], "time"), (stops[1], "preemption")], 2):
            stop.ask(wish)
        for stop in stops:
            stop.thread.join(SECONDS)
        reasons = {stop.leave_after(1) for stop in stops}
        assert len(reasons) == 1 and reasons <= {"time", "preemption"}
        first |= reasons
    assert first == {"time", "preemption"}, "one of them came first every time"


def test_a_wish_of_this_rank_does_not_hide_the_agreed_reason(connections: list[tuple[Any, Any]]) -> None:
    stops = _stops(connections, "later wish", 2)
    stops[0].ask("preemption")
    for stop in stops:
        stop.start(0)
    for stop in stops:
        stop.thread.join(SECONDS)
    stops[1].ask("time")
    assert [stop.leave_after(1) for stop in stops] == ["preemption", "preemption"]


MASTER = """
import sys, time
import torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(600)
"""


def test_nobody_waits_for_a_store_that_is_gone() -> None:
    """Rank 0's process holds the store; another rank waits after the step that it promised."""
    master = subprocess.Popen([sys.executable, "-c", MASTER], stdout=subprocess.PIPE, text=True)
    try:
        assert master.stdout is not None
        port, timeout = int(master.stdout.readline()), timedelta(minutes=5)
        stores = [dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timeout) for _ in range(2)]
        rank = Rank(StopTogether(*stores, 1, 2), Collective(1, 0), "", 100_000)
        rank.collective.step = lambda rank, number: None  # type: ignore[method-assign]
        rank.stop.ask("time")
        rank.thread.start()
        deadline = time.monotonic() + SECONDS
        while not rank.stop.promised and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        behind = rank.stop.done
        time.sleep(0.2)
        assert rank.stop.done == behind and not rank.stop.agreed.is_set(), "it waits for rank 0's promise"
    finally:
        master.kill()
        master.wait()
    assert rank.stop.agreed.wait(SECONDS)
    assert rank.reason is None and not rank.stop.left
    deadline = time.monotonic() + SECONDS
    while rank.stop.done == behind and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rank.stop.done > behind, "it continues, and its next collective will fail"
    rank.most = 0
    rank.thread.join(SECONDS)


def test_nobody_waits_longer_than_the_store_does_for_a_rank_that_says_nothing() -> None:
    master = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1))
    stop = StopTogether(master, master.clone(), 0, 2)
    stop.ask("time")
    stop.start(0)
    assert stop.agreed.wait(SECONDS)
    assert stop.leave_after(1) is None and not stop.left

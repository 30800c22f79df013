"""Waiting for resources: what is said, and when it ends. The cluster is a table here; tests/smoke/test_autoscaling.py
has a real one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from raymb.driver import resources as waiting
from raymb.driver.autoscaler import Autoscaling
from raymb.driver.cluster import Resources
from raymb.errors import ClusterError


class Table:
    """
    Args:
        have: the cluster's resources; free: those that nobody uses.
    """

    def __init__(self, have: dict[str, float]):
        self.have, self.free = have, dict(have)
        self.found = Autoscaling()
        self.asked: list[list[dict[str, float]]] = []
        self.seconds = 0.0
        self.grows: dict[str, float] = {}

    @contextmanager
    def ask(self, bundles: list[dict[str, float]]) -> Iterator[object]:
        self.asked.append(bundles)

        def is_there(seconds: float) -> bool:
            needs = {name: sum(bundle[name] for bundle in bundles) for name in bundles[0]}
            if all(amount <= self.free.get(name, 0) + 1e-6 for name, amount in needs.items()):
                return True
            self.seconds += seconds
            for name, more in self.grows.items():
                self.have[name] = self.free[name] = self.have.get(name, 0) + more
            return False

        try:
            yield is_there
        finally:
            self.asked.append([])


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table({"CPU": 8.0})
    monkeypatch.setattr(waiting, "_asked", table.ask)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: table.seconds)
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: table.have)
    monkeypatch.setattr(waiting.ray, "available_resources", lambda: table.free)
    monkeypatch.setattr(waiting.autoscaler, "look", lambda bundle, count: table.found)
    return table


def wait(worker: Resources, num_workers: int, seconds: float | str, way_out: str = "") -> str:
    said = io.StringIO()
    waiting.wait_for(worker, num_workers, seconds, Console(file=said, width=200), way_out)
    return said.getvalue()


def test_enough_is_taken_at_once(table: Table) -> None:
    table.free["CPU"] = 1.98
    assert wait(Resources(0.66, 0, 1), 3, 0) == ""
    assert table.seconds == 0


@pytest.mark.parametrize(
    ("worker", "num_workers", "free", "text"),
    [
        (Resources(1.0, 1, 1), 4, 8, "4 GPUs asked (1 for each worker), 0 there"),
        (Resources(3.0, 0, 1), 4, 8, "12 CPUs asked (3 for each worker), 8 there"),
        (
            Resources(4.0, 1, 1),
            4,
            8,
            "16 CPUs asked (4 for each worker), 8 there, 4 GPUs asked (1 for each worker), 0 there",
        ),
        (Resources(1.0, 0, 1), 8, 2, "8 CPUs asked (1 for each worker), 8 there, 2 of them free"),
    ],
)
def test_too_little_is_refused_with_flags(
    table: Table, worker: Resources, num_workers: int, free: float, text: str
) -> None:
    table.free["CPU"] = free
    with pytest.raises(ClusterError) as caught:
        wait(worker, num_workers, 0.0, "; --backend cpu trains on CPUs")
    assert caught.value.message == f"the cluster has too little for {num_workers} workers after 1 s: {text}"
    for flag in ("--num_workers", "--cpus_per_worker", "--wait_for_resources", "--backend cpu"):
        assert flag in caught.value.hint


def test_what_does_not_fit_into_single_nodes_is_said(table: Table) -> None:
    assert waiting._missing({"CPU": 3.0}, 2) == "2 x (3 CPU) do not fit into what is free on each node"


def test_waiting_ends_when_the_cluster_grows(table: Table) -> None:
    """Asked for once, and given back; a line at the start and every 30 s, with what is starting."""
    table.grows, table.found = {"GPU": 0.1}, Autoscaling(active=True, starting={"gpu-4": 2})
    said = wait(Resources(1.0, 1, 1), 4, "auto").splitlines()
    assert table.asked == [[{"CPU": 1.0, "GPU": 1}] * 4, []]
    assert said[0] == (
        "waiting for resources, 1 of 900 s: 4 GPUs asked (1 for each worker), 0.1 there; starting: 2 x gpu-4"
    )
    assert [line.partition(",")[2][:14] for line in said] == [" 1 of 900 s: 4", " 31 of 900 s: "]


@pytest.mark.parametrize(("active", "seconds"), [(False, 60), (True, 900)])
def test_auto_waits_longer_for_nodes_that_are_to_be_started(table: Table, active: bool, seconds: float) -> None:
    table.found = Autoscaling(active=active)
    with pytest.raises(ClusterError, match=f"after {seconds} s"):
        wait(Resources(1.0, 1, 1), 4, "auto")


def test_what_can_never_be_had_is_refused_at_once(table: Table) -> None:
    table.found = Autoscaling(active=True, impossible=True)
    with pytest.raises(ClusterError, match="can never have enough for 4 workers: 4 GPUs asked"):
        wait(Resources(1.0, 1, 1), 4, 900.0)
    assert table.seconds == 1 and table.asked[-1] == []

"""Where workers are placed from start to start, and which nodes are left alone. The cluster is a table here;
tests/smoke/test_busy_cluster.py has a real one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raymb.driver import placement, resources
from raymb.driver.placement import Placement
from raymb.driver.resources import Request
from raymb.errors import ClusterError, RunFailed


class Told:
    """The hub, as far as the placement knows it."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.push = SimpleNamespace(remote=self.records.extend)


class Held:
    """A reservation, by its effect."""

    def __init__(self, count: int) -> None:
        self.count, self.withdrawn = count, False

    def withdraw(self) -> None:
        self.withdrawn = True


def placed(nodes: str) -> Any:
    """Ray Train's worker group, by the node of each rank."""
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_ip="10.0.0.1", node_id=node * 16)) for node in nodes]
    return SimpleNamespace(get_workers=lambda: workers)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Three nodes of four CPUs, each with an address of its own."""
    found = [
        {"NodeID": name * 16, "Alive": True, "NodeManagerAddress": f"10.0.0.{number}", "Resources": {"CPU": 4.0}}
        for number, name in enumerate("abc")
    ]
    monkeypatch.setattr(resources.ray, "nodes", lambda: found)
    monkeypatch.setattr(placement.ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(placement, "ask_nodes", lambda question, asked, seconds: {n["NodeID"]: True for n in asked})
    return found


def of(told: Told, held: Any = None, sizes: tuple[int, ...] = (4,)) -> Placement:
    return Placement(Request({"CPU": 1.0}, sizes, 2), 1.0, told, held)


def test_several_nodes_are_told_and_one_is_worth_no_line(nodes: list[dict[str, Any]]) -> None:
    told = Told()
    of(told).after_worker_group_start(placed("aaaa"))
    assert told.records == []
    of(told).after_worker_group_start(placed("aabb"))
    assert [record["text"] for record in told.records] == [
        "placed: ranks 0 to 1 on 10.0.0.1 (node aaaaaaaa), 2 to 3 on 10.0.0.1 (node bbbbbbbb)"
    ]


def start(one: Placement, nodes: str) -> Any:
    """Workers start in the places that are held; the reservation."""
    assert one.look() == len(nodes)
    taken = one.take()
    one.after_worker_group_start(placed(nodes))
    return taken


def test_workers_that_failed_keep_their_places_and_those_that_end_give_them_back(nodes: list[dict[str, Any]]) -> None:
    held: Any = Held(4)
    one = of(Told(), held)
    start(one, "aabb")
    one.failed_on([1])
    one.left(held)
    assert not held.withdrawn and start(one, "aabb") is held
    one.left(held)
    assert held.withdrawn


def test_places_on_a_node_that_has_gone_are_given_back(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: Any = Held(4)
    one = of(Told(), held)
    start(one, "aabb")
    one.failed_on([2])
    one.left(held)
    nodes[1]["Alive"] = False
    monkeypatch.setattr(placement.Waiting, "look", lambda waiting: None)
    assert one.look() is None and held.withdrawn and one.waiting is not None
    assert one.waiting.begun and one.waiting.request.avoid == ()


def test_a_node_that_does_not_answer_is_gone(nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    held: Any = Held(4)
    one = of(Told(), held)
    start(one, "aabb")
    one.failed_on([2])
    one.left(held)
    monkeypatch.setattr(placement, "ask_nodes", lambda question, asked, seconds: {"a" * 16: True, "b" * 16: "silent"})
    monkeypatch.setattr(placement.Waiting, "look", lambda waiting: None)
    assert one.look() is None and held.withdrawn


def fail_on(one: Placement, nodes: str, ranks: list[int], held: Any) -> None:
    one.withdraw()
    one.held = held
    start(one, nodes)
    one.failed_on(ranks)
    one.left(held)


def test_a_node_that_failed_twice_is_avoided_while_there_are_others(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement.Waiting, "look", lambda waiting: None)
    told = Told()
    one = of(told)
    for _ in range(2):
        assert one._to_avoid() == ()
        fail_on(one, "aabb", [2, 3], Held(4))
    assert one.look() is None and one.waiting is not None
    assert one.waiting.request.avoid == ("b" * 16,)
    assert [record["text"] for record in told.records if record["kind"] == "warning"] == [
        "node 10.0.0.1 gets no more workers: they failed there 2 times"
    ]
    nodes[2]["Alive"] = nodes[0]["Alive"] = False
    assert one._to_avoid() == (), "it is the only one"


def test_a_machine_that_comes_back_under_another_name_is_the_same_one(nodes: list[dict[str, Any]]) -> None:
    one = of(Told())
    fail_on(one, "aabb", [2], Held(4))
    nodes[1]["Alive"] = False
    nodes.append({**nodes[1], "NodeID": "d" * 16, "Alive": True})
    fail_on(one, "aadd", [2], Held(4))
    assert one._to_avoid() == ("d" * 16,)


def test_ranks_of_several_nodes_blame_none(nodes: list[dict[str, Any]]) -> None:
    one = of(Told())
    for _ in range(3):
        fail_on(one, "aabb", [1, 2], Held(4))
    assert one._to_avoid() == ()


@pytest.mark.parametrize(("begun", "error"), [(False, ClusterError), (True, RunFailed)])
def test_a_run_that_has_trained_fails_where_one_that_has_not_is_refused(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, begun: bool, error: type[Exception]
) -> None:
    def over(waiting: Any) -> None:
        raise ClusterError("too little", "wait longer")

    one = of(Told())
    if begun:
        one.after_worker_group_start(placed("aabb"))
    monkeypatch.setattr(placement.Waiting, "look", over)
    with pytest.raises(error) as caught:
        one.look()
    assert (caught.value.message, caught.value.hint) == ("too little", "wait longer")


@pytest.mark.parametrize(
    ("free", "running", "possible"),
    [
        ({"a": 4, "b": 4, "c": 4}, "", 8),
        ({"a": 0, "b": 0, "c": 4}, "aabb", 8),
        ({"a": 1, "b": 1, "c": 1}, "aabb", 4),  # 3, 3 and 1: two whole groups
        ({"a": 3, "b": 1, "c": 1}, "", 2),
        ({"a": 1, "b": 1, "c": 1}, "", 0),
    ],
)
def test_a_run_can_grow_into_what_is_free_for_whole_groups(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, free: dict[str, int], running: str, possible: int
) -> None:
    monkeypatch.setattr(
        resources, "available_resources_per_node", lambda: {name * 16: {"CPU": cpus} for name, cpus in free.items()}
    )
    one = of(Told(), sizes=(2, 4, 8))
    one.nodes = [name * 16 for name in running]
    assert one.possible() == possible

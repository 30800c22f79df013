"""Waiting for resources: what is said, and when it ends. The cluster is a table here; tests/smoke/test_autoscaling.py
has a real one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from raymb.driver import resources as waiting
from raymb.driver.autoscaler import Autoscaling
from raymb.driver.cluster import Resources
from raymb.driver.resources import Request, Waiting
from raymb.errors import ClusterError


class Table:
    """
    Args:
        nodes: resources of each node.

    Attributes:
        free: what nobody uses of them.
        asked: each request, and an empty one where it is withdrawn.
    """

    def __init__(self, *nodes: dict[str, float]):
        self.have, self.free = {f"node-{number}": node for number, node in enumerate(nodes)}, {}
        self.free = {name: dict(node) for name, node in self.have.items()}
        self.found = Autoscaling()
        self.asked: list[list[dict[str, float]]] = []
        self.seconds = 0.0
        self.grows: dict[str, float] = {}

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": name, "Alive": True, "NodeManagerHostname": f"host-{name[-1]}", "Resources": node}
            for name, node in self.have.items()
        ]

    def fits(self, bundles: list[dict[str, float]], avoid: Sequence[str]) -> bool:
        """Each bundle on one node, packed as Ray packs them."""
        free = {name: dict(node) for name, node in self.free.items() if name not in avoid}
        for bundle in bundles:
            homes = [
                node for node in free.values() if all(node.get(key, 0) + 1e-6 >= need for key, need in bundle.items())
            ]
            if not homes:
                return False
            for key, need in bundle.items():
                homes[0][key] -= need
        return True

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds
        for key, more in self.grows.items():
            self.have["node-0"][key] = self.free["node-0"][key] = self.have["node-0"].get(key, 0) + more


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    table = Table({"CPU": 8.0})

    class Group:
        def __init__(self, bundles: list[dict[str, float]], strategy: str, bundle_label_selector: Any) -> None:
            self.bundles = bundles
            (words,) = {label["ray.io/node-id"] for label in bundle_label_selector or ()} or {"!in()"}
            self.avoid = words.removeprefix("!in(").removesuffix(")").split(",")
            table.asked.append(bundles)

        def wait(self, seconds: float) -> bool:
            there = table.fits(self.bundles, self.avoid)
            if not there:
                table.pass_by(seconds)
            return there

    def total(nodes: dict[str, dict[str, float]]) -> dict[str, float]:
        return {key: sum(node.get(key, 0) for node in nodes.values()) for key in ("CPU", "GPU", "memory")}

    monkeypatch.setattr(waiting, "placement_group", Group)
    monkeypatch.setattr(waiting, "remove_placement_group", lambda group: table.asked.append([]))
    monkeypatch.setattr(waiting.time, "monotonic", lambda: table.seconds)
    monkeypatch.setattr(waiting, "available_resources_per_node", lambda: table.free)
    monkeypatch.setattr(waiting.ray, "nodes", table.nodes)
    monkeypatch.setattr(waiting.ray, "cluster_resources", lambda: total(table.have))
    monkeypatch.setattr(waiting.ray, "available_resources", lambda: total(table.free))
    monkeypatch.setattr(waiting.autoscaler, "look", lambda bundle, count: table.found)
    return table


def take(table: Table, **free: float) -> None:
    """Others use all but so much of node-0."""
    table.free["node-0"].update(free)


def wait(worker: Resources, num_workers: int, seconds: float | str, way_out: str = "", **more: Any) -> list[str]:
    said: list[str] = []
    waiting.wait_for(Request(worker.to_dict(), [num_workers], **more), seconds, said.append, way_out)
    return said


def test_enough_is_taken_at_once(table: Table) -> None:
    take(table, CPU=1.98)
    assert wait(Resources(0.66, 0, 1), 3, 0) == []
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
        (
            Resources(1.0, 0, 1),
            8,
            2,
            "8 CPUs asked (1 for each worker), 8 there, 2 of them free (room for workers: 2 of 8 on host-0 (node-0))",
        ),
    ],
)
def test_too_little_is_refused_with_flags(
    table: Table, worker: Resources, num_workers: int, free: float, text: str
) -> None:
    take(table, CPU=free)
    with pytest.raises(ClusterError) as caught:
        wait(worker, num_workers, 0.0, "; --backend cpu trains on CPUs")
    assert caught.value.message == f"the cluster has too little for {num_workers} workers after 1 s: {text}"
    for flag in ("--num_workers", "--cpus_per_worker", "--wait_for_resources", "--backend cpu"):
        assert flag in caught.value.hint


@pytest.mark.parametrize("tensor", [1, 2])
def test_workers_of_a_tensor_parallel_group_need_room_on_one_node(table: Table, tensor: int) -> None:
    """Two nodes with one free CPU each hold two workers, and no group of two."""
    table.__init__({"CPU": 2.0}, {"CPU": 2.0})  # type: ignore[misc]
    for node in table.free.values():
        node["CPU"] = 1.0
    if tensor == 1:
        assert wait(Resources(1.0, 0, 1), 2, 0) == []
        return
    with pytest.raises(ClusterError) as caught:
        wait(Resources(1.0, 0, 1), 2, 30.0, tensor=tensor)
    assert caught.value.message == (
        "the cluster has too little for 2 workers after 30 s: 1 x (2 CPU) do not fit into what is free on each node: "
        "room for workers, of which 2 must be on one node: 1 of 2 on host-0 (node-0), 1 of 2 on host-1 (node-1)"
    )
    assert table.asked == [[{"CPU": 2.0}], []], "one bundle a group"


def test_memory_is_told_in_gib(table: Table) -> None:
    table.__init__({"CPU": 8.0, "memory": 12.0 * 2**30})  # type: ignore[misc]
    take(table, memory=2.0 * 2**30)
    with pytest.raises(ClusterError) as caught:
        wait(Resources(1.0, 0, 1, memory=4 << 30), 2, 0)
    text = "8 GiB of memory asked (4 for each worker), 12 there, 2 of them free"
    assert f"after 1 s: {text} (room for workers: 0 of 3 on host-0 (node-0))" in caught.value.message


def test_a_group_that_is_larger_than_every_node_lies_on_several(table: Table) -> None:
    table.__init__({"CPU": 2.0}, {"CPU": 2.0})  # type: ignore[misc]
    assert wait(Resources(1.0, 0, 1), 4, 0, tensor=4) == []
    assert table.asked == [[{"CPU": 1.0}] * 4]


def test_groups_that_no_placement_keeps_whole_are_refused_at_once(table: Table) -> None:
    """Nodes of three CPUs hold one group of two each."""
    table.__init__({"CPU": 3.0}, {"CPU": 3.0})  # type: ignore[misc]
    with pytest.raises(ClusterError, match="have room for 2 whole ones") as caught:
        wait(Resources(1.0, 0, 1), 6, 900.0, tensor=2)
    assert table.seconds == 1 and "--tensor_parallel_size" in caught.value.hint


def test_nodes_to_avoid_get_no_worker(table: Table) -> None:
    table.__init__({"CPU": 4.0}, {"CPU": 4.0})  # type: ignore[misc]
    assert wait(Resources(1.0, 0, 1), 4, 0, avoid=("node-0",)) == []
    with pytest.raises(ClusterError, match="do not fit into what is free on each node: room for workers: 4 of 4 on"):
        wait(Resources(1.0, 0, 1), 8, 0, avoid=("node-0",))


@pytest.mark.parametrize(("free", "count"), [(8, 8), (7, 4), (3, 2)])
def test_a_size_that_may_vary_is_the_largest_that_is_free(table: Table, free: float, count: int) -> None:
    take(table, CPU=free)
    request = Request({"CPU": 1.0}, [2, 4, 8], 2)
    assert waiting.wait_for(request, 0, print).count == count


def test_what_becomes_free_meanwhile_makes_the_size_larger(table: Table) -> None:
    take(table, CPU=1.0)
    looking = Waiting(Request({"CPU": 1.0}, [2, 4, 8], 2), 60.0, print)
    assert looking.look() is None and looking.asked is not None and looking.asked.count == 2
    take(table, CPU=5.0)
    found = looking.look()
    assert found is not None and found.count == 4 and found.bundles() == [0, 0, 1, 1]
    assert table.asked == [[{"CPU": 2.0}], [], [{"CPU": 2.0}] * 2]


def test_waiting_ends_when_the_cluster_grows(table: Table) -> None:
    """Asked for once; a line at the start and every 30 s, with what is starting."""
    table.grows, table.found = {"GPU": 0.1}, Autoscaling(active=True, starting={"gpu-4": 2})
    said = wait(Resources(1.0, 1, 1), 4, "auto")
    assert table.asked == [[{"CPU": 1.0, "GPU": 1}] * 4]
    assert said[0] == (
        "waiting for resources, 1 of 900 s: 4 GPUs asked (1 for each worker), 0.1 there; starting: 2 x gpu-4"
    )
    assert [line.partition(",")[2][:14] for line in said] == [" 1 of 900 s: 4", " 31 of 900 s: "]


@pytest.mark.parametrize(("active", "seconds"), [(False, 60), (True, 900)])
def test_auto_waits_longer_for_nodes_that_are_to_be_started(table: Table, active: bool, seconds: float) -> None:
    table.found = Autoscaling(active=active)
    with pytest.raises(ClusterError, match=f"after {seconds} s"):
        wait(Resources(1.0, 1, 1), 4, "auto")


def test_auto_waits_longer_where_a_run_has_begun(table: Table) -> None:
    """A machine that starts again is there after minutes."""
    looking = Waiting(Request({"CPU": 1.0, "GPU": 1}, [4]), "auto", print, begun=True)
    with pytest.raises(ClusterError, match="after 900 s"):
        while looking.look() is None:
            pass


def test_what_can_never_be_had_is_refused_at_once(table: Table) -> None:
    table.found = Autoscaling(active=True, impossible=True)
    with pytest.raises(ClusterError, match="can never have enough for 4 workers: 4 GPUs asked"):
        wait(Resources(1.0, 1, 1), 4, 900.0)
    assert table.seconds == 1 and table.asked[-1] == []

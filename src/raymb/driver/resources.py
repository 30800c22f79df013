"""Waiting for the workers' resources, before a run begins and between its starts.

They are asked for as one placement group, and the workers start inside it: what has been waited for cannot be taken by
somebody else meanwhile. The autoscaler sees it, and Ray removes it by itself when the driver ends, however it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from raymb.driver import autoscaler
from raymb.driver.autoscaler import Autoscaling
from raymb.errors import ClusterError
from raymb.plan.placement import HINT, room_problem
from raymb.runtime.ray_internals import available_resources_per_node

_SECONDS = 60.0
_SECONDS_FOR_NODES = 900.0
"""What `auto` waits: for resources that are there and in use; and for nodes that an autoscaler starts, or that come
back to a run which has begun."""
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_OF_A_LOOK = 1.0
_NODE_ID = "ray.io/node-id"
_NODES_NAMED = 4


@dataclass(frozen=True)
class Request:
    """
    Args:
        worker: what each worker needs, by resource.
        sizes: numbers of workers that the run can have, ascending.
        tensor: ranks of a tensor parallel group, which are placed on one node.
        placement: pack or spread.
        avoid: ids of nodes that get no worker.
    """

    worker: Mapping[str, float]
    sizes: Sequence[int]
    tensor: int = 1
    placement: str = "pack"
    avoid: tuple[str, ...] = ()

    @property
    def together(self) -> int:
        """Workers that must be on one node: a group, unless it is larger than every node, which its user knows."""
        rooms = self.rooms()
        return self.tensor if self.tensor <= max(rooms.values(), default=0) or not any(rooms.values()) else 1

    def rooms(self, free: Mapping[str, Mapping[str, float]] | None = None) -> dict[str, int]:
        """Workers that each node can hold.

        Args:
            free: resources by node; default: all that the nodes have.
        """
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return {
            node: self._hold(resources if free is None else free.get(node, {}))
            for node, resources in nodes.items()
            if node not in self.avoid
        }

    def room(self, together: int, own: Mapping[str, int] | None = None) -> int:
        """Workers that are now free places for, in whole groups.

        Args:
            own: workers of this run by node, whose places are its own.
        """
        own = own or {}
        rooms = self.rooms(available_resources_per_node()).items()
        return sum((room + own.get(node, 0)) // together * together for node, room in rooms)

    def _hold(self, resources: Mapping[str, float]) -> int:
        return int(min(resources.get(name, 0.0) / each for name, each in self.worker.items() if each) + 1e-6)

    def missing(self, together: int) -> str:
        """What is asked and what there is, for each resource that falls short, and where it does."""
        have, free, count = ray.cluster_resources(), ray.available_resources(), self.sizes[0]
        short = []
        for name, each in self.worker.items():
            there, left = have.get(name, 0), free.get(name, 0)
            asked, one = _amount(name, each * count), _amount(name, each, unit=False)
            asked = f"{asked} asked ({one} for each worker), {_amount(name, there, unit=False)} there"
            if each * count > there + 1e-6:
                short.append(asked)
            elif each * count > left + 1e-6:
                short.append(f"{asked}, {_amount(name, left, unit=False)} of them free")
        where = self._where_free(together)
        if short:
            return ", ".join(short) + (f" ({where})" if where and any("free" in line for line in short) else "")
        need = ", ".join(_amount(name, each * together, plural="") for name, each in self.worker.items())
        return f"{count // together} x ({need}) do not fit into what is free on each node" + (where and f": {where}")

    def _where_free(self, together: int) -> str:
        """`room for 3 of 4 workers on a, 1 of 4 on b`."""
        whole, free = self.rooms(), self.rooms(available_resources_per_node())
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
        nodes = [f"{free[node]} of {room} on {names[node]} ({node[-8:]})" for node, room in whole.items() if room]
        more = f", and {len(nodes) - _NODES_NAMED} nodes more" if len(nodes) > _NODES_NAMED else ""
        group = f", of which {together} must be on one node" if together > 1 else ""
        return f"room for workers{group}: {', '.join(nodes[:_NODES_NAMED])}{more}" if nodes else ""


def _amount(name: str, amount: float, unit: bool = True, plural: str = "s") -> str:
    """4 GPUs; 12.5 GiB of memory."""
    if name == "memory":
        return f"{amount / 2**30:.3g}" + (" GiB of memory" if unit else "")
    return f"{amount:g}" + (f" {name}{plural}" if unit else "")


class Reservation:
    """Places for workers, which Ray keeps for this run. Each bundle of the placement group holds the workers that must
    be on one node.

    Args:
        count: workers.
        together: workers of a bundle.
    """

    def __init__(self, request: Request, count: int, together: int):
        self.count, self.together, avoid = count, together, request.avoid
        self.bundle = {name: round(each * together, 4) for name, each in request.worker.items()}
        bundles = [self.bundle] * (count // together)
        labels: Any = [{_NODE_ID: f"!in({','.join(avoid)})"}] * len(bundles) if avoid else None
        self.group = placement_group(bundles, strategy=request.placement.upper(), bundle_label_selector=labels)

    def is_there(self, seconds: float) -> bool:
        return self.group.wait(seconds)

    def bundles(self) -> list[int]:
        """The bundle of each worker."""
        return [worker // self.together for worker in range(self.count)]

    def withdraw(self) -> None:
        remove_placement_group(self.group)


class Waiting:
    """For the resources of a run's next start.

    Args:
        seconds: to wait; auto: 60, or 900 where an autoscaler can bring nodes, or the run has begun before.
        say: takes a line, at first and every 30 s.
        begun: whether workers of this run have trained.
        way_out: what else the user can do, beside what is true of every run.
    """

    def __init__(
        self, request: Request, seconds: float | str, say: Callable[[str], None], begun: bool = False, way_out: str = ""
    ):
        self.request, self.seconds, self.say, self.begun, self.way_out = request, seconds, say, begun, way_out
        self.began = time.monotonic()
        self.said: float | None = None
        self.together = request.together
        self.asked: Reservation | None = None

    def look(self) -> Reservation | None:
        """The places, once they are there; until then to be called again and again. Where the size may vary, they are
        those of the largest one that there is room for now.

        Raises:
            ClusterError: with what is asked and what there is, when the time is over, or at once where no waiting can
                make it good.
        """
        size = self._size()
        if self.asked is not None and self.asked.count != size:
            self.withdraw()
        if self.asked is None:
            self.asked = Reservation(self.request, size, self.together)
        if self.asked.is_there(_SECONDS_OF_A_LOOK):
            found, self.asked = self.asked, None
            return found
        scaling = autoscaler.look(self.asked.bundle, size // self.together)
        if scaling.impossible and self.together > 1:  # no node will ever hold a group: it is on several, as asked
            self.together = 1
            self.withdraw()
        else:
            self._judge(scaling, time.monotonic() - self.began)
        return None

    def _size(self) -> int:
        sizes = self.request.sizes
        room = self.request.room(self.together) if len(sizes) > 1 else 0
        return max((size for size in sizes if size <= room), default=sizes[0])

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        if self.asked is not None:
            self.asked.withdraw()
            self.asked = None

    def _judge(self, found: Autoscaling, waited: float) -> None:
        count, limit = self.request.sizes[0], self._limit(found)
        missing = "; ".join(filter(None, [self.request.missing(self.together), found.described()]))
        if found.impossible:
            self.withdraw()
            raise ClusterError(
                f"the cluster can never have enough for {count} workers: {missing}, and Ray's autoscaler has no nodes "
                "to add that would give the rest",
                f"lower --num_workers, or add such nodes to the cluster's configuration{self.way_out}",
            )
        if not found.active and not self.begun and (problem := self._never_whole()):
            self.withdraw()
            raise ClusterError(problem, HINT)
        if waited >= limit:
            self.withdraw()
            raise ClusterError(
                f"the cluster has too little for {count} workers after {waited:.0f} s: {missing}",
                "lower --num_workers or --cpus_per_worker, add nodes, or wait longer with --wait_for_resources "
                f"SECONDS{self.way_out}",
            )
        if self.said is None or time.monotonic() - self.said >= _SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            self.say(f"waiting for resources, {waited:.0f} of {limit:.0f} s: {missing}")

    def _never_whole(self) -> str:
        """Why the nodes, with everything free, would have room for the workers and not for their groups."""
        count, rooms = self.request.sizes[0], list(self.request.rooms().values())
        return room_problem(self.together, count, rooms) if sum(rooms) >= count else ""

    def _limit(self, found: Autoscaling) -> float:
        if self.seconds == "auto":
            return _SECONDS_FOR_NODES if found.active or self.begun else _SECONDS
        return float(self.seconds)


def wait_for(request: Request, seconds: float | str, say: Callable[[str], None], way_out: str = "") -> Reservation:
    """Wait until the cluster has reserved the workers' places.

    Raises:
        ClusterError: as by Waiting.look.
    """
    waiting = Waiting(request, seconds, say, way_out=way_out)
    try:
        while True:
            if found := waiting.look():
                return found
    finally:
        waiting.withdraw()

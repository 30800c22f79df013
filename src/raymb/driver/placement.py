"""Where the workers are: asked for on Ray Train's controller before each start, noted after it, and which nodes are
better left alone."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from raymb.driver.nodes import ask_nodes
from raymb.driver.resources import Request, Reservation, Waiting
from raymb.errors import ClusterError, RunFailed
from raymb.plan.placement import ranks_of_nodes
from raymb.runtime.ray_internals import WorkerGroupCallback
from raymb.telemetry.records import Record

_SECONDS_TO_TELL = 10.0
_SECONDS_TO_ANSWER = 10.0
_FAILURES_OF_A_NODE = 2
"""After so many a node is avoided."""


class Placement(WorkerGroupCallback):
    """The places of the workers of one run, from start to start.

    Args:
        request: what the workers need.
        seconds: --wait_for_resources.
        hub: the actor that the driver listens to.
        held: places that the driver has waited for.
    """

    def __init__(self, request: Request, seconds: float | str, hub: Any, held: Reservation | None = None):
        self.request, self.seconds, self.hub, self.held = request, seconds, hub, held
        self.waiting: Waiting | None = None
        self.nodes: list[str] = []
        self.keeps = self.kept = False
        self.failed = collections.Counter[str]()
        self.avoided: frozenset[str] = frozenset()

    # Before a start

    def look(self) -> int | None:
        """The number of workers that there are places for now; None while there are none.

        Raises:
            ClusterError: there will be none in time.
            RunFailed: the same, for a run that has trained before.
        """
        avoid = self._to_avoid()
        if self.held is not None and self.kept and not self._still_good(avoid):
            self.withdraw()
        if self.held is not None:
            return self.held.count
        if self.waiting is None:
            request = replace(self.request, avoid=avoid)
            self.waiting = Waiting(request, self.seconds, self._say, begun=bool(self.nodes))
        try:
            self.held = self.waiting.look()
        except ClusterError as error:
            if not self.nodes:
                raise
            raise RunFailed(error.message, error.hint) from None
        if self.held is None:
            return None
        self.waiting = None
        return self.held.count

    def take(self) -> Reservation:
        """The places that `look` has found; they are the worker group's from here on."""
        assert self.held is not None
        taken, self.held = self.held, None
        self.keeps = self.kept = False
        return taken

    def left(self, reservation: Reservation) -> None:
        """Its workers are gone. After a failure the next ones get the same places, or others would take them first."""
        if self.keeps:
            self.held, self.kept = reservation, True
        else:
            reservation.withdraw()

    def _still_good(self, avoid: Sequence[str]) -> bool:
        """Whether the nodes of the places that were kept are there, and none is to be avoided."""
        nodes = [node for node in ray.nodes() if node["NodeID"] in self.nodes and node["Alive"]]
        if len(nodes) < len(set(self.nodes)) or set(avoid) & set(self.nodes):
            return False
        answers = ask_nodes(_answer, nodes, _SECONDS_TO_ANSWER)
        return all(answer is True for answer in answers.values())

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        for one in (self.held, self.waiting):
            if one is not None:
                one.withdraw()
        self.held = self.waiting = None
        self.keeps = self.kept = False

    # After a start

    def after_worker_group_start(self, worker_group: Any) -> None:
        places = [worker.metadata for worker in worker_group.get_workers()]
        self.nodes = [place.node_id for place in places]
        names = [f"{place.node_ip} (node {place.node_id[-8:]})" for place in places]
        if len(set(names)) > 1:
            self._tell({"kind": "phase", "text": f"placed: {ranks_of_nodes(names)}"})

    def possible(self) -> int:
        """The most workers of the run's sizes that there would be places for if those that run gave up theirs."""
        room = self.request.room(self.request.together, collections.Counter(self.nodes))
        return max((size for size in self.request.sizes if size <= room), default=0)

    # After a failure

    def failed_on(self, ranks: Iterable[int]) -> None:
        """These ranks have failed by themselves, and all start again. Where they are of several nodes, none is to
        blame."""
        self.keeps = True
        nodes = {self.nodes[rank] for rank in ranks}
        if len(nodes) == 1:
            node = nodes.pop()
            self.failed[_lasting_names().get(node, node)] += 1

    def _to_avoid(self) -> tuple[str, ...]:
        """Nodes on which workers have failed again and again, where the others could hold the run."""
        bad = {name for name, count in self.failed.items() if count >= _FAILURES_OF_A_NODE}
        if not bad:
            return ()
        alive, names = [node["NodeID"] for node in ray.nodes() if node["Alive"]], _lasting_names()
        avoid = tuple(node for node in alive if names.get(node) in bad)
        together = self.request.together
        rooms = replace(self.request, avoid=avoid).rooms().values()
        if sum(room // together * together for room in rooms) < self.request.sizes[0]:
            avoid = ()
        for node in set(avoid) - self.avoided:
            text = f"node {names[node]} gets no more workers: they failed there {self.failed[names[node]]} times"
            self._tell({"kind": "warning", "text": text})
        self.avoided = frozenset(avoid)
        return avoid

    def _say(self, line: str) -> None:
        self._tell({"kind": "phase", "text": line})

    def _tell(self, record: Record) -> None:
        with contextlib.suppress(RayError):
            ray.get(self.hub.push.remote([record]), timeout=_SECONDS_TO_TELL)


def _answer() -> Callable[[], bool]:
    return lambda: True


def _lasting_names() -> dict[str, str]:
    """What each node's machine is called also after Ray has started there again: its address, if no other node that
    lives shares it."""
    addresses = {node["NodeID"]: (node["NodeManagerAddress"], bool(node["Alive"])) for node in ray.nodes()}
    living = collections.Counter(address for address, alive in addresses.values() if alive)
    return {
        node: address if address and living[address] == alive else node for node, (address, alive) in addresses.items()
    }

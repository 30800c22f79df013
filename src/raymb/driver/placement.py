"""Where Ray has placed the workers, looked at on the controller of Ray Train before they import Megatron."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError

from raymb.errors import ClusterError
from raymb.plan.placement import HINT, placed_problem, ranks_of_nodes
from raymb.runtime.ray_internals import WorkerGroupCallback
from raymb.telemetry.records import Record

_SECONDS_TO_TELL = 10.0


class PlacementCallback(WorkerGroupCallback):
    """Looks where Ray has placed the workers, before they import Megatron: a run does not begin with tensor parallel
    groups over several nodes. One that has begun before resumes, more slowly, on the nodes that are left to it.

    Args:
        tensor_parallel_size: ranks of a group.
        hub: the actor that the driver listens to.
    """

    def __init__(self, tensor_parallel_size: int, hub: Any):
        self.tensor_parallel_size, self.hub = tensor_parallel_size, hub
        self.begun = False

    def after_worker_group_start(self, worker_group: Any) -> None:
        places = [worker.metadata for worker in worker_group.get_workers()]
        nodes = [f"{place.node_ip} (node {place.node_id[-8:]})" for place in places]
        problem = placed_problem(self.tensor_parallel_size, nodes)
        if problem and not self.begun:
            raise ClusterError(problem, HINT)
        self.begun = True
        if problem:
            record: Record = {"kind": "warning", "text": problem}
        elif len(set(nodes)) > 1:
            record = {"kind": "phase", "text": f"placed: {ranks_of_nodes(nodes)}"}
        else:
            return
        with contextlib.suppress(RayError):
            ray.get(self.hub.push.remote([record]), timeout=_SECONDS_TO_TELL)

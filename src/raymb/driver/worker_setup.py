"""What Ray Train does with its workers around the training function: where they are, addresses for torch.distributed,
and SIGTERM.

In the place of Ray Train's TorchConfig, whose module imports torch: the controller only hands these classes on, and a
worker imports torch together with what it trains with.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.backend import Backend, BackendConfig

from raymb.errors import ClusterError
from raymb.plan.placement import HINT, placed_problem, ranks_of_nodes
from raymb.runtime.ray_internals import TrainingFramework, WorkerCallback, WorkerGroupCallback, get_address_and_port

_SECONDS_TO_LEAVE = 5.0
_SECONDS_TO_TELL = 10.0


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Tells the workers where torch.distributed meets; they join by themselves (raymb.worker.join_process_group).

    Args:
        backend: nccl or gloo; TorchTrainer asks for it.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return _ProcessGroup

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH


class _ProcessGroup(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_environment, address, port)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        with contextlib.suppress(RayError):
            ray.get(worker_group.execute_async(_leave), timeout=_SECONDS_TO_LEAVE)


def _set_environment(address: str, port: int) -> None:
    """torchrun's variables."""
    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "NODE_RANK": str(context.get_node_rank()),
    }


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


class PlacementCallback(WorkerGroupCallback):
    """Looks where Ray has placed the workers, before they import Megatron: a run does not begin with tensor parallel
    groups over several nodes. One that has begun goes on, more slowly, on the nodes that are left to it.

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
            record = {"kind": "warning", "text": problem}
        elif len(set(nodes)) > 1:
            record = {"kind": "phase", "text": f"placed: {ranks_of_nodes(nodes)}"}
        else:
            return
        with contextlib.suppress(RayError):
            ray.get(self.hub.push.remote([record]), timeout=_SECONDS_TO_TELL)


class SigtermCallback(WorkerCallback):
    """Makes SIGTERM to a worker a stop with a checkpoint. Runs on the worker's main thread, where alone a handler can
    be installed, before the training begins on another one."""

    def after_init_train_context(self) -> None:
        from raymb.rank.interrupt import ask_on_sigterm

        with contextlib.suppress(ValueError):
            ask_on_sigterm()

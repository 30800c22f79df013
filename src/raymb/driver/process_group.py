"""What Ray Train does on its workers around the training function: addresses for torch.distributed, and SIGTERM.

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

from raymb.runtime.ray_internals import TrainingFramework, WorkerCallback, get_address_and_port

_SECONDS_TO_LEAVE = 5.0


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


class SigtermCallback(WorkerCallback):
    """Makes SIGTERM to a worker a stop with a checkpoint. Runs on the worker's main thread, where alone a handler can
    be installed, before the training begins on another one."""

    def after_init_train_context(self) -> None:
        from raymb.rank.interrupt import ask_on_sigterm

        with contextlib.suppress(ValueError):
            ask_on_sigterm()

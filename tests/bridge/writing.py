"""`python writing.py OUT DEVICE`: saves a state with Megatron-Core and raymb's writing thread, once while the next step
changes it; OUT/asynchronous and OUT/synchronous are to be the same. DEVICE, cpu or cuda, has the weights."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from raymb import cpu
from raymb.bridge.patches import imports

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
imports.install()
DEVICE = sys.argv[2]
if DEVICE == "cpu":
    cpu.activate()

import torch  # noqa: E402
from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing import ShardedTensor  # noqa: E402

from raymb.bridge.patches.checkpoint_writing import keep_write_results_in_process  # noqa: E402
from raymb.bridge.writes import Writes  # noqa: E402
from raymb.rank.progress import Progress  # noqa: E402

OUT = Path(sys.argv[1])
if DEVICE == "cpu":
    # As on workers with GPUs whose optimizer is offloaded: the device has a name, and the moments are on the host.
    torch.cuda.get_device_name = lambda *device: "NVIDIA H200"
keep_write_results_in_process()


def state() -> dict[str, torch.Tensor]:
    """Weights, a moment that is a tensor of its own, one that is a view, and one in bf16."""
    pool = torch.arange(64, dtype=torch.float32)
    return {
        "weight": torch.arange(2048, dtype=torch.float32, device=DEVICE),
        "exp_avg": torch.arange(4096, dtype=torch.float32),
        "exp_avg_sq": pool[16:48],
        "step": torch.ones(7).bfloat16(),
    }


def request(tensors: dict[str, torch.Tensor], directory: Path) -> Any:
    directory.mkdir()
    sharded: Any = {name: ShardedTensor.from_rank_offsets(name, tensor) for name, tensor in tensors.items()}
    return dist_checkpointing.save(sharded, str(directory), async_sharded_save=True, async_strategy="mcore")


class Training:
    """As much of a Saving as a write needs."""

    def __init__(self, directory: Path):
        self.progress, self.remote, self.place = Progress(), None, directory
        self.files: dict[str, Any] = {}

    def directory(self, step: int) -> Path:
        return self.place

    def made_whole(self, step: int, metric: float | None, files: dict[str, Any]) -> None:
        self.files = files


def write(name: str, meanwhile: bool) -> None:
    tensors, training = state(), Training(OUT / name)
    asked = request(tensors, OUT / name)
    function, held = asked.async_fn, threading.Event()

    def held_up(*arguments: Any) -> None:
        held.wait(30)
        function(*arguments)

    writes = Writes(training)  # type: ignore[arg-type]
    writes.schedule_async_request(
        SimpleNamespace(**{**asked._asdict(), "async_fn": held_up if meanwhile else function})
    )
    if meanwhile:
        for tensor in tensors.values():
            tensor.mul_(3)  # the next step, on the host
    held.set()
    assert writes.maybe_finalize_async_calls(blocking=True) and training.files, "it was given up"


write("synchronous", False)
write("asynchronous", True)
dist.destroy_process_group()

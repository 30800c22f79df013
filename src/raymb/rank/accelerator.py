"""The one seam between the CUDA and the CPU backend: what a worker does differently on each, and nothing else."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb.errors import RaymbError
from raymb.run.job import Job


@dataclass(frozen=True)
class Accelerator:
    """How a worker trains on one kind of device.

    Args:
        name: "cuda" or "cpu".
        distributed_backend: torch.distributed's back end.
        precision: what `--precision auto` means here.
    """

    name: str
    distributed_backend: str
    precision: str

    def activate(self, fsdp: bool = False) -> None:
        """Prepare this process; before any megatron import.

        Args:
            fsdp: whether Megatron-FSDP is used.

        Raises:
            RaymbError: a CUDA worker has no Transformer Engine.
        """
        if self.name == "cpu":
            from raymb import cpu

            cpu.activate(fsdp)
        elif importlib.util.find_spec("transformer_engine") is None:
            raise RaymbError(
                "Transformer Engine is not installed on this worker, and Megatron's layers on GPUs are built of it",
                "install it there with scripts/install-cuda, or train on CPUs with --backend cpu",
            )

    def device(self) -> Any:
        """Select and return this worker's torch.device. Under Ray Train each worker sees its own GPU as the
        local rank's; Bridge skips the choice when torch.distributed is already up."""
        import torch

        if self.name == "cpu":
            return torch.device("cpu")
        visible = torch.cuda.device_count()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % visible)
        torch.cuda.set_device(device)
        return device

    def model_settings(self) -> dict[str, Any]:
        """Provider fields that the device dictates."""
        if self.name == "cuda":
            return {}
        from raymb.cpu.model_settings import cpu_model_settings

        return cpu_model_settings()

    def config_settings(self) -> dict[str, Any]:
        """ConfigContainer fields, by path, that the device dictates."""
        if self.name == "cuda":
            return {}
        return {
            "dist.distributed_backend": "gloo",
            "dist.external_gpu_device_mapping": True,
            "dist.disable_jit_fuser": True,
            "dataset.pin_memory": False,
            "dataset.num_workers": 0,  # a loader process would import torch again: seconds, on the same cores
        }


ACCELERATORS = {
    "cuda": Accelerator("cuda", "nccl", "bf16"),
    "cpu": Accelerator("cpu", "gloo", "fp32"),
}


def chip_name() -> str:
    """Of this worker's GPU, or of the processor."""
    import torch

    name = torch.cuda.get_device_name()
    return processor_name() if name == "cpu" else name


def processor_name() -> str:
    """As Linux names it; `cpu` where it does not."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            label, _, value = line.partition(":")
            if label.strip() == "model name":
                return " ".join(value.split())
    return "cpu"


def precision_of(job: Job) -> str:
    """bf16 or fp32: of the weights, and of what is not computed in FP8."""
    asked = job.spec.train.precision
    if "fp8" in asked:
        return "bf16"
    return ACCELERATORS[job.backend].precision if asked == "auto" else asked

"""What is known of GPUs: memory, peak rates, links. Source: the vendor's datasheets (SXM parts where there are two)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from raymb.errors import SpecError


@dataclass(frozen=True)
class Gpu:
    """
    Args:
        name: as --gpu takes it.
        device: the word that torch's name of the device has.
        memory: bytes that CUDA finds; less, where a layout has run out of that (raymb.plan.smaller).
        tflops: dense bf16 peak, TFLOP/s.
        bandwidth: of its memory, bytes/s.
        link: to the other GPUs of its node, bytes/s in one direction.
        fp8: the values of --precision in FP8 that it can compute in.
        host: bytes of memory of the node that it is in; None where nobody knows.
    """

    name: str
    device: str
    memory: int
    tflops: float
    bandwidth: float
    link: float
    fp8: tuple[str, ...]
    host: int | None = None


GIB = 1 << 30
"""Bytes; memory is given in it everywhere."""
_TB, _GB = 1e12, 1e9


_BLACKWELL = ("fp8", "mxfp8")
_ADA = ("fp8",)
_HOPPER = ("fp8", "fp8_blockwise")
_AMPERE = ()


def _gpu(name: str, device: str, gib: float, tflops: float, terabytes: float, link: float, fp8: tuple[str, ...]) -> Gpu:
    return Gpu(name, device, int(gib * GIB), tflops, terabytes * _TB, link * _GB, fp8)


GPUS = [
    _gpu("gb200", "GB200", 184.0, 2500.0, 8.0, 900, _BLACKWELL),
    _gpu("b200", "B200", 179.0, 2250.0, 8.0, 900, _BLACKWELL),
    _gpu("gh200-96gb", "GH200", 94.5, 989.4, 4.0, 450, _HOPPER),
    _gpu("h200-nvl", "H200 NVL", 139.8, 835.5, 4.8, 450, _HOPPER),
    _gpu("h200", "H200", 139.8, 989.4, 4.8, 450, _HOPPER),
    _gpu("h100-pcie", "H100 PCIe", 79.2, 756.0, 2.0, 64, _HOPPER),
    _gpu("h100-nvl", "H100 NVL", 93.1, 835.5, 3.9, 300, _HOPPER),
    _gpu("h100-80gb", "H100", 79.2, 989.4, 3.35, 450, _HOPPER),
    _gpu("h20", "H20", 95.1, 148.0, 4.0, 450, _HOPPER),
    _gpu("a100-40gb", "A100-SXM4-40GB", 39.4, 312.0, 1.55, 300, _AMPERE),
    _gpu("a100-80gb", "A100", 79.2, 312.0, 2.0, 300, _AMPERE),
    _gpu("l40s", "L40S", 44.4, 362.05, 0.864, 32, _ADA),
    _gpu("l40", "L40", 44.4, 181.05, 0.864, 32, _ADA),
    _gpu("l4", "L4", 22.2, 121.0, 0.3, 32, _ADA),
    _gpu("a10g", "A10G", 22.1, 70.0, 0.6, 32, _AMPERE),
]
"""A longer device name stands before the shorter one that it contains."""
USUAL = "h100-80gb"
"""What is planned for where nobody says."""


def gpu_named(name: str) -> Gpu:
    """
    Raises:
        SpecError: nothing is known of it.
    """
    for gpu in GPUS:
        if name.lower() == gpu.name:
            return gpu
    raise SpecError(f"--gpu {name} is not known", f"one of {', '.join(gpu.name for gpu in GPUS)}")


def reduced_memory(gpu: Gpu) -> int | None:
    """Its memory, where that is less than GPUs of its name have."""
    return gpu.memory if gpu.memory < gpu_named(gpu.name).memory else None


def gpu_of_device(device_name: str) -> Gpu | None:
    """The GPU by torch's, nvidia-smi's or Ray's name for it; None when it is not known. Only whole words match: an L40
    is no L4."""
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.device}\b", device_name)), None)

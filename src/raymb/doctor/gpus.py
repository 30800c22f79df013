"""GPUs and driver of a machine, by what NVML says: nothing here imports torch."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator

from raymb.doctor.finding import Finding
from raymb.doctor.machine import Device, Machine
from raymb.plan.gpus import GIB

AREA = "gpus"
_OLDEST_DRIVER = {12: 525, 13: 580}
"""CUDA's major version to the driver that it needs at least. Source: NVIDIA's CUDA Toolkit release notes."""
_LEAST_CAPABILITY = 8.0
"""Ampere: the first that computes in bf16, and the oldest that Transformer Engine supports."""
_LEAVE_OUT = "leave it out: CUDA_VISIBLE_DEVICES=0,1,..."
_OWN_SHARE = 0.05
"""Of a GPU's memory: what the driver may take for itself."""


def check_gpus(machine: Machine) -> Iterator[Finding]:
    if machine.trouble:
        fix = "see that `nvidia-smi` works here: driver loaded, container started with its GPUs (--gpus all)"
        yield Finding(AREA, "driver", "error", machine.trouble, fix)
    elif not machine.devices:
        yield Finding(AREA, "devices", "ok", f"{machine.host} has no NVIDIA GPU: runs take --backend cpu by themselves")
    else:
        yield from _devices(machine.devices)
        yield _driver(machine)


def _driver(machine: Machine) -> Finding:
    major = int(machine.torch_cuda.partition(".")[0] or 0)
    oldest, driver = _OLDEST_DRIVER.get(major), machine.driver
    if not machine.torch_cuda:
        fix = "scripts/setup installs the tested one"
        return Finding(AREA, "driver", "error", f"{driver}; torch is missing, or built without CUDA", fix)
    if oldest is None:
        return Finding(AREA, "driver", "warning", f"{driver}; nothing is known of torch's CUDA {machine.torch_cuda}")
    if int(driver.partition(".")[0]) < oldest:
        said = f"{driver} is older than {oldest}, which CUDA {machine.torch_cuda} of the installed torch needs"
        return Finding(AREA, "driver", "error", said, f"install driver {oldest} or newer on {machine.host}")
    return Finding(AREA, "driver", "ok", f"{driver}, for CUDA {machine.torch_cuda} of torch ({oldest} or newer)")


def _devices(devices: list[Device]) -> Iterator[Finding]:
    kinds = collections.Counter((device.name, device.memory) for device in devices)
    said = ", ".join(f"{number} x {name} of {memory / GIB:.1f} GiB" for (name, memory), number in kinds.items())
    if len(kinds) > 1:
        fix = "choose those of one kind with CUDA_VISIBLE_DEVICES: the slowest GPU sets the step's time"
        yield Finding(AREA, "devices", "warning", f"{said}: several kinds", fix)
    else:
        yield Finding(AREA, "devices", "ok", said)
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        yield _visible(os.environ["CUDA_VISIBLE_DEVICES"], len(devices))
    for device in devices:
        yield from _device(device)


def _visible(chosen: str, there: int) -> Finding:
    if chosen.strip() in ("", "-1", "NoDevFiles"):
        said, fix = f"CUDA_VISIBLE_DEVICES={chosen!r} hides all {there}", "unset CUDA_VISIBLE_DEVICES to train on GPUs"
        return Finding(AREA, "devices", "warning", said, fix)
    return Finding(AREA, "devices", "ok", f"CUDA_VISIBLE_DEVICES={chosen} leaves {len(chosen.split(','))} of {there}")


def _device(device: Device) -> Iterator[Finding]:
    name = f"GPU {device.index}"
    if device.capability < _LEAST_CAPABILITY:
        said = f"compute capability {device.capability} of {device.name} is below {_LEAST_CAPABILITY}: no bf16"
        yield Finding(AREA, name, "error", said, "use GPUs of the Ampere generation or newer, or --backend cpu")
    if device.memory_used > _OWN_SHARE * device.memory:
        said = f"{device.memory_used / GIB:.1f} of {device.memory / GIB:.1f} GiB are in use by other processes"
        yield Finding(AREA, name, "warning", said, f"end what `nvidia-smi` lists, or {_LEAVE_OUT}")
    if device.ecc_errors:
        said = f"{device.ecc_errors} uncorrected memory errors since the driver was loaded"
        yield Finding(AREA, name, "error", said, f"reset it or have it replaced; {_LEAVE_OUT}")

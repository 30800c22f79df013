"""The GPUs as NVIDIA's management library (NVML, which nvidia-smi prints) has them. A program of its own: with a broken
driver the library hangs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any


def describe() -> dict[str, Any]:
    """{"driver": its version, "devices": fields of raymb.doctor.machine.Device}, or {"trouble": why not}."""
    try:
        import pynvml
    except ImportError:
        return {"trouble": "nvidia-ml-py is not installed, which asks NVIDIA's driver for its GPUs"}
    try:
        pynvml.nvmlInit()
        devices = [_device(index) for index in range(pynvml.nvmlDeviceGetCount())]
        driver = pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError as error:
        return {"trouble": f"NVIDIA's driver says: {error}"}
    return {"driver": driver, "devices": devices} if devices else {"trouble": "NVIDIA's driver has no GPU"}


def _device(index: int) -> dict[str, Any]:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    memory = _memory(handle)
    errors = 0
    with contextlib.suppress(pynvml.NVMLError):  # has no ECC, or it is off
        kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        errors = pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since)
    return {
        "index": index,
        "name": pynvml.nvmlDeviceGetName(handle),
        "memory": memory.total if memory else 0,
        "memory_used": memory.used if memory else 0,
        "capability": major + minor / 10,
        "ecc_errors": errors,
    }


def _memory(handle: Any) -> Any:
    """Without what the driver reserves, which drivers before 510 count as used; None where it is not told."""
    import pynvml

    ways: list[Callable[[], Any]] = [
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2),
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle),
    ]
    for way in ways:
        with contextlib.suppress(pynvml.NVMLError):
            return way()
    return None


if __name__ == "__main__":
    print(json.dumps(describe()))

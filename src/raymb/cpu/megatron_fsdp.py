"""Megatron-FSDP over gloo: Megatron-Core 0.19.2 names its device and its meshes `cuda`, whatever torch.cuda says."""

from __future__ import annotations

import importlib
from typing import Any

import torch

_PACKAGE = "megatron.core.distributed.fsdp"
_MODULES = ("mcore_fsdp_adapter", "src.megatron_fsdp.megatron_fsdp", "src.megatron_fsdp.param_and_grad_buffer")


class _Torch:
    """torch, whose only device is the CPU."""

    @staticmethod
    def device(*args: Any, **kwargs: Any) -> torch.device:
        return torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def install() -> None:
    for name in _MODULES:
        importlib.import_module(f"{_PACKAGE}.{name}").torch = _Torch()  # type: ignore[attr-defined]

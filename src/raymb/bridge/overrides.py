"""`section.field=value`, set in a ConfigContainer."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import torch
from megatron.bridge.training.comm_overlap import CommOverlapConfig
from megatron.bridge.training.config import ConfigContainer

from raymb.errors import SpecError


def apply_overrides(config: ConfigContainer, overrides: dict[str, Any]) -> None:
    """Set ConfigContainer fields by path; a field that does not exist is an error, not a new attribute."""
    for path, value in overrides.items():
        set_field(config, path, value)


def set_field(config: ConfigContainer, path: str, value: Any) -> None:
    """Set one field. A word such as `torch.bfloat16`, or the name of an enumeration's member, becomes what it names.

    Raises:
        SpecError: there is no such field.
    """
    *sections, name = path.split(".")
    if sections == ["comm_overlap"] and config.comm_overlap is None:
        config.comm_overlap = _comm_overlap(config)
    target: Any = config
    for section in sections:
        target = getattr(target, section, None)
    if target is None or not dataclasses.is_dataclass(target) or not hasattr(target, name):
        raise SpecError(f"override {path}: the ConfigContainer has no such field")
    setattr(target, name, _meant(value, getattr(target, name)))


def _comm_overlap(config: ConfigContainer) -> CommOverlapConfig:
    """The section that Bridge leaves out by default. Left to itself it would overlap data parallel communication
    whatever --overlap_grad_reduce and --overlap_param_gather say."""
    ddp = config.ddp
    return CommOverlapConfig(
        tp_comm_overlap=False,
        overlap_grad_reduce=ddp.overlap_grad_reduce,
        overlap_param_gather=ddp.overlap_param_gather,
    )


def _meant(value: Any, current: Any) -> Any:
    if not isinstance(value, str):
        return value
    if isinstance(current, enum.Enum) and value in type(current).__members__:
        return type(current)[value]
    dtype = getattr(torch, value.removeprefix("torch."), None) if value.startswith("torch.") else None
    return dtype if isinstance(dtype, torch.dtype) else value

"""Tensor and sequence parallel collectives with their gradients, and the few other names of te.pytorch.distributed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Function


def _gather(x: torch.Tensor, group: Any) -> torch.Tensor:
    size = dist.get_world_size(group)
    out = x.new_empty((size * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(out, x.contiguous(), group=group)
    return out


def _reduce_scatter(x: torch.Tensor, group: Any) -> torch.Tensor:
    size = dist.get_world_size(group)
    out = x.new_empty((x.shape[0] // size, *x.shape[1:]))
    dist.reduce_scatter_tensor(out, x.contiguous(), group=group)
    return out


def _all_reduce(x: torch.Tensor, group: Any) -> torch.Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=group)
    return out


class _GatherSequence(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _reduce_scatter(grad, ctx.group), None


class _ReduceScatterSequence(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _gather(grad, ctx.group), None


class _CopyToGroup(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_reduce(grad, ctx.group), None


class _SumOverGroup(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


def gather_sequence(x: torch.Tensor, group: Any) -> torch.Tensor:
    """[s / n, ...] on each of n ranks to [s, ...] on all; gradients are summed and scattered."""
    return _GatherSequence.apply(x, group)  # type: ignore[return-value]


def reduce_scatter_sequence(x: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum over n ranks of [s, ...], of which each keeps its [s / n, ...]; gradients are gathered."""
    return _ReduceScatterSequence.apply(x, group)  # type: ignore[return-value]


def copy_to_group(x: torch.Tensor, group: Any) -> torch.Tensor:
    """The same tensor; gradients are summed over the ranks."""
    return _CopyToGroup.apply(x, group)  # type: ignore[return-value]


def sum_over_group(x: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum over the ranks; gradients pass."""
    return _SumOverGroup.apply(x, group)  # type: ignore[return-value]


@contextmanager
def activation_recompute_forward(activation_recompute: bool = False, recompute_phase: bool = False) -> Iterator[None]:
    """Keeps FP8 scales over a recomputation; without FP8 there are none."""
    yield


class CudaRNGStatesTracker:
    """Megatron uses its own tracker unless model.use_te_rng_tracker is set, for CUDA graphs."""

    def __init__(self) -> None:
        raise RuntimeError("the CPU backend has no CUDA graphs: leave model.use_te_rng_tracker off")

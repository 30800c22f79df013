"""What gloo (torch 2.11) does not do and Megatron asks of its back end. Everything else that Megatron calls (reductions
in bf16, reduce-scatter, all-gather, uneven and empty all-to-all, averages, coalescing) gloo has."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist


def install() -> None:
    """Replace the functions in torch.distributed. Idempotent."""
    if hasattr(dist, "_raymb_gloo"):
        return
    dist.all_to_all_single = _with_listed_splits(dist.all_to_all_single)
    dist.all_to_all = _all_to_all
    dist.all_gather = _with_uneven_sizes(dist.all_gather, _all_gather_uneven)
    dist.reduce_scatter = _with_uneven_sizes(dist.reduce_scatter, _reduce_scatter_uneven)
    dist._raymb_gloo = True  # type: ignore[attr-defined]


def _with_listed_splits(function: Any) -> Any:
    """Megatron's expert dispatcher turns split sizes into lists when it copies them off a GPU; here they are still
    tensors."""

    @functools.wraps(function)
    def all_to_all_single(
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Any = None,
        input_split_sizes: Any = None,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        return function(output, input, _listed(output_split_sizes), _listed(input_split_sizes), group, async_op)

    return all_to_all_single


def _listed(sizes: Any) -> Any:
    return sizes.tolist() if hasattr(sizes, "tolist") else sizes


def _all_to_all(
    output_tensor_list: list[torch.Tensor],
    input_tensor_list: list[torch.Tensor],
    group: Any = None,
    async_op: bool = False,
) -> Any:
    """gloo has no all-to-all of lists; it has the one of a single tensor."""
    received = torch.empty(sum(tensor.numel() for tensor in output_tensor_list), dtype=output_tensor_list[0].dtype)
    sent = torch.cat([tensor.reshape(-1) for tensor in input_tensor_list])
    sizes = [[tensor.numel() for tensor in tensors] for tensors in (output_tensor_list, input_tensor_list)]
    dist.all_to_all_single(received, sent, *sizes, group=group)
    for target, part in zip(output_tensor_list, received.split(sizes[0]), strict=True):
        target.copy_(part.view_as(target))
    return _Done() if async_op else None


def _with_uneven_sizes(function: Any, uneven: Any) -> Any:
    """NCCL takes lists of tensors of different sizes, as experts with tensor parallelism send; gloo wants one size."""

    @functools.wraps(function)
    def wrapped(first: Any, second: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = first if isinstance(first, list) else second
        if len({tensor.shape for tensor in tensors}) == 1:
            return function(first, second, *args, **kwargs)
        return uneven(first, second, *args, **kwargs)

    return wrapped


def _all_gather_uneven(
    tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False
) -> Any:
    for rank, target in enumerate(tensor_list):
        if rank == dist.get_rank(group):
            target.copy_(tensor)
        dist.broadcast(target, group=group, group_src=rank)
    return _Done() if async_op else None


def _reduce_scatter_uneven(
    output: torch.Tensor,
    input_list: list[torch.Tensor],
    op: Any = dist.ReduceOp.SUM,
    group: Any = None,
    async_op: bool = False,
) -> Any:
    whole = torch.cat(input_list)
    dist.all_reduce(whole, op=op, group=group)
    output.copy_(whole.split([len(tensor) for tensor in input_list])[dist.get_rank(group)])
    return _Done() if async_op else None


class _Done:
    """A finished operation."""

    def wait(self) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

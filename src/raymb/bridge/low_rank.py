"""What LoRA adds to a matrix's output: two thin products, and no further tensor of the output's size.

output += scale x (input A) B. The parts of a fused matrix (queries, keys and values; gate and up) share both products:
A has their columns side by side, B their rows, each part's in the columns that are its own. Bridge computes each part
by itself, with a product, a scaling, a joining and a sum of the output's size: passes over the GPU's memory, and calls
of Python that take longer than the GPU where a micro-batch has few tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from megatron.bridge.peft.utils import ParallelLinearAdapter
from megatron.core.tensor_parallel import layers
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.utils import get_pg_size
from torch import nn
from torch.nn import functional


def prepare(adapter: Any) -> None:
    """Make its modules what `add` calls. They are called, and their weights not taken out of them, because
    Megatron-Core gathers the weights of a distributed optimizer in a hook before each module's forward."""
    adapter.linear_out.__class__ = _giving_its_weight(type(adapter.linear_out))
    if get_pg_size(adapter.tp_group) == 1:
        adapter.linear_in.__class__ = _giving_its_weight(type(adapter.linear_in))


@functools.cache
def _giving_its_weight(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"WeightOf{kind.__name__}", (kind,), {"forward": lambda self: self.weight})


def computes(adapter: Any, matrix: Any) -> bool:
    """Whether `add` can stand for an adapter on a whole matrix: not on experts, and on several tensor parallel ranks
    not on a matrix that each has the whole of."""
    if type(adapter) is not ParallelLinearAdapter or adapter.is_expert:
        return False
    return get_pg_size(adapter.tp_group) == 1 or getattr(matrix, "parallel_mode", None) in ("column", "row")


def add(
    output: torch.Tensor,
    x: torch.Tensor,
    parts: Sequence[tuple[Any, int]],
    order: torch.Tensor | None = None,
    exchanged: bool = False,
) -> torch.Tensor:
    """output [..., columns] + scale x (x A) B, in the memory of output.

    Args:
        x: [..., inputs], of this rank as the matrix has them.
        parts: the adapter, or None, and the number of columns of each part of the matrix.
        order: which of the parts' columns, one part after the other, each column of output is; None: just these.
        exchanged: whether parts' columns are those of all tensor parallel ranks.
    """
    adapters = [adapter for adapter, _ in parts if adapter is not None]
    first = adapters[0]
    places, above, left = [], 0, 0
    for adapter, columns in parts:
        if adapter is not None:
            places.append((above, left))
            above += adapter.dim
        left += columns
    weights = [_second(adapter, exchanged) for adapter in adapters]
    inner = _inner(adapters, x)
    return _Sum.apply(output, inner, order, left, places, first.alpha / first.dim, _fused(first), *weights)


def _fused(adapter: Any) -> bool:
    """Whether a weight's gradient is added to Megatron's buffer within the backward pass, in fp32."""
    return adapter.config.gradient_accumulation_fusion


def _inner(adapters: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """x A: [..., rank x adapters], of the tokens that the output has."""
    first = adapters[0]
    gathers = not first.disable_sequence_parallel_comm
    if get_pg_size(first.tp_group) == 1:
        if isinstance(first.dropout, nn.Identity):
            return _Product.apply(x, _fused(first), *(adapter.linear_in() for adapter in adapters))
        parts = [_Product.apply(adapter.dropout(x), _fused(first), adapter.linear_in()) for adapter in adapters]
        return torch.cat(parts, dim=-1)
    inputs = [adapter.dropout(x) for adapter in adapters]
    if gathers and not first.input_is_parallel:
        inputs = [gather_from_sequence_parallel_region(dropped, group=first.tp_group) for dropped in inputs]
    parts = [adapter.linear_in(dropped)[0] for adapter, dropped in zip(adapters, inputs, strict=True)]
    inner = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    if not first.input_is_parallel:
        return copy_to_tensor_model_parallel_region(inner, group=first.tp_group)
    return scatter_to_sequence_parallel_region(inner, group=first.tp_group) if gathers else inner


def _second(adapter: Any, exchanged: bool) -> torch.Tensor:
    """B transposed: [the part's columns, rank]."""
    weight, own_tokens = adapter.linear_out(), not adapter.disable_sequence_parallel_comm
    if get_pg_size(adapter.tp_group) == 1 or not (exchanged or adapter.input_is_parallel):
        return weight
    # Split over ranks, which differ in the columns that they add to, or in their tokens, or in nothing: only in the
    # last case has each the whole gradient of its part.
    differ = exchanged or own_tokens
    return gather_from_sequence_parallel_region(weight, tensor_parallel_output_grad=differ, group=adapter.tp_group)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _weight_gradient(gradient: torch.Tensor, inputs: torch.Tensor, fused: bool) -> torch.Tensor:
    """gradient [tokens, out] transposed x inputs [tokens, in]; in fp32 by the kernel of Megatron's own layers."""
    if not fused:
        return gradient.t() @ inputs
    total = torch.zeros(gradient.shape[1], inputs.shape[1], dtype=torch.float32, device=inputs.device)
    layers.fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(inputs.contiguous(), gradient.contiguous(), total)  # type: ignore[union-attr]
    return total


def _given(weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], fused: bool) -> list[torch.Tensor]:
    """What the backward pass returns for weights: what is in Megatron's buffer already is marked so, and not read."""
    if not fused or not all(hasattr(weight, "main_grad") for weight in weights):
        return [gradient.to(weight.dtype) for weight, gradient in zip(weights, gradients, strict=True)]
    torch._foreach_add_([weight.main_grad for weight in weights], list(gradients))  # type: ignore[attr-defined]
    for weight in weights:
        weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return [torch.empty_like(weight) for weight in weights]


class _Product(torch.autograd.Function):
    """x [..., inputs] times the weights [rank, inputs] side by side."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, fused: bool, *weights: torch.Tensor) -> torch.Tensor:
        matrix = weights[0] if len(weights) == 1 else torch.cat(weights)
        ctx.save_for_backward(x, matrix)
        ctx.weights, ctx.fused = weights, fused
        return functional.linear(x, matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        x, matrix = ctx.saved_tensors
        gradient = _rows(gradients[0])
        of_weights = _weight_gradient(gradient, _rows(x), ctx.fused).split([len(one) for one in ctx.weights])
        of_x = (gradient @ matrix).view(x.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, *_given(ctx.weights, of_weights, ctx.fused)


class _Sum(torch.autograd.Function):
    """Overwrites `output`, which nobody keeps: the gradient of a product needs its inputs only."""

    @staticmethod
    def forward(
        ctx: Any,
        output: torch.Tensor,
        inner: torch.Tensor,
        order: torch.Tensor | None,
        columns: int,
        places: list[tuple[int, int]],
        scale: float,
        fused: bool,
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        if columns == len(weights[0]):
            outer = weights[0].t()
        else:
            outer = inner.new_zeros(inner.shape[-1], columns)
            for weight, (above, left) in zip(weights, places, strict=True):
                outer[above : above + weight.shape[1], left : left + len(weight)].copy_(weight.t())
        if order is not None:
            outer = outer.index_select(1, order)
        ctx.save_for_backward(inner, outer, order)
        ctx.weights, ctx.columns, ctx.places, ctx.scale, ctx.fused = weights, columns, places, scale, fused
        total = output.detach()
        total.view(-1, total.shape[-1]).addmm_(_rows(inner), outer, alpha=scale)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        inner, outer, order = ctx.saved_tensors
        gradient = _rows(gradients[0])
        of_inner = (gradient @ outer.t()).mul_(ctx.scale).view(inner.shape)
        of_outer = _weight_gradient(gradient, _rows(inner), ctx.fused).mul_(ctx.scale)
        if order is not None:
            of_outer = of_outer.new_zeros(ctx.columns, of_outer.shape[1]).index_copy_(0, order, of_outer)
        of_weights = [
            of_outer[left : left + len(weight), above : above + weight.shape[1]]
            for weight, (above, left) in zip(ctx.weights, ctx.places, strict=True)
        ]
        return gradients[0], of_inner, None, None, None, None, None, *_given(ctx.weights, of_weights, ctx.fused)

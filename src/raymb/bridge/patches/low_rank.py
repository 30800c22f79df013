"""What LoRA adds to a matrix's output: two thin products, and no further tensor of the output's size.

output += scale x (input A) B. The parts of a fused matrix (queries, keys and values; gate and up) share both products:
A has their columns side by side, B their rows, each part's in the columns that are its own. Bridge computes each part
by itself, with a product, a scaling, a joining and a sum of the output's size: passes over the GPU's memory, and calls
of Python that take longer than the GPU where a micro-batch has few tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from megatron.bridge.peft.canonical_lora import LoRALinearSplitFC1UpGate, LoRALinearSplitQKV, ModuleDict
from megatron.bridge.peft.lora_layers import LoRALinear
from megatron.bridge.peft.utils import ParallelLinearAdapter
from megatron.core.tensor_parallel import layers
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.utils import get_pg_rank, get_pg_size
from torch import nn
from torch.nn import functional

from raymb.bridge.patches.gated_queries import gates_after_queries, vectors_of_a_head
from raymb.bridge.patches.patch import Patch, bare, text_of

_LORA = "megatron.bridge.peft.canonical_lora"


def together(wrapper: Any) -> nn.Module:
    """A wrapper of Bridge's around a matrix, in the class below that computes its adapters, if there is one."""
    classes = {LoRALinearSplitQKV: _SplitQKV, LoRALinearSplitFC1UpGate: _SplitGateUp}
    kind, adapter = type(wrapper), wrapper.adapter
    if kind in classes:
        parts: dict[str, Any] = {name: part for name, part in adapter.items() if part is not None}
        for part in parts.values():
            _prepare(part)
        wrapper.adapter, wrapper.__class__ = ModuleDict(parts), classes[kind]
    elif kind is LoRALinear and _computes(adapter, wrapper.to_wrap):
        _prepare(adapter)
        wrapper.__class__ = _Whole
    return wrapper


def _prepare(adapter: Any) -> None:
    """Make its modules what `_add` calls. They are called, and their weights not taken out of them, because
    Megatron-Core gathers the weights of a distributed optimizer in a hook before each module's forward."""
    adapter.linear_out.__class__ = _giving_its_weight(type(adapter.linear_out))
    if get_pg_size(adapter.tp_group) == 1:
        adapter.linear_in.__class__ = _giving_its_weight(type(adapter.linear_in))


@functools.cache
def _giving_its_weight(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"WeightOf{kind.__name__}", (kind,), {"forward": lambda self: self.weight})


def _computes(adapter: Any, matrix: Any) -> bool:
    """Whether `_add` can stand for an adapter on a whole matrix: not on experts, and on several tensor parallel ranks
    not on a matrix that each has the whole of."""
    if type(adapter) is not ParallelLinearAdapter or adapter.is_expert:
        return False
    return get_pg_size(adapter.tp_group) == 1 or getattr(matrix, "parallel_mode", None) in ("column", "row")


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A matrix's output, and what the adapters of its parts add."""
    output, bias, normed = self.base_linear_forward(x, *args, **kwargs)
    if not self._adapter_enabled:
        return output, bias
    return _add(output, normed, *self.parts(output)), bias


class _Whole(LoRALinear):
    """An adapter on a whole matrix."""

    forward = _forward

    def parts(self, output: torch.Tensor) -> tuple[list[tuple[Any, int]]]:
        return ([(self.adapter, output.shape[-1])],)


class _SplitGateUp(LoRALinearSplitFC1UpGate):
    forward = _forward
    adapter: Any  # type: ignore[assignment]

    def parts(self, output: torch.Tensor) -> tuple[list[tuple[Any, int]]]:
        adapters = dict(self.adapter.items())
        return ([(adapters.get(name), output.shape[-1] // 2) for name in ("adapter_gate", "adapter_up")],)


class _SplitQKV(LoRALinearSplitQKV):
    forward = _forward
    adapter: Any  # type: ignore[assignment]
    to_wrap: Any  # type: ignore[assignment]
    order: torch.Tensor | None = None

    def parts(self, output: torch.Tensor) -> tuple[list[tuple[Any, int]], torch.Tensor, bool]:
        """Of queries, keys and values; which of their columns each one of output is.

        With fewer groups than ranks a rank's columns of output are not its columns of them: ranks exchange them, as
        Megatron's attention does with the matrix's output.
        """
        adapters, config = dict(self.adapter.items()), self.to_wrap.config
        group = next(iter(adapters.values())).tp_group
        groups, ranks = config.num_query_groups, get_pg_size(group)
        exchanged = groups < ranks
        share = 1 if exchanged else ranks
        heads = [config.num_attention_heads * vectors_of_a_head(config), groups, groups]
        columns = [config.kv_channels * count // share for count in heads]
        if self.order is None:
            numbers = torch.arange(sum(columns), device=output.device).split(columns)
            queries, *others = (part.unflatten(-1, (groups // share, -1)) for part in numbers)
            order = torch.cat([gates_after_queries(queries, config), *others], dim=-1).flatten()
            self.order = order.chunk(ranks)[get_pg_rank(group)] if exchanged else order
        names = ("adapter_q", "adapter_k", "adapter_v")
        return list(zip(map(adapters.get, names), columns, strict=True)), self.order, exchanged


def _add(
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


class _Pair(nn.Module):
    linear_in: nn.Module
    linear_out: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_out(self.linear_in(x))


def _calls_absent_adapters(prepare: Callable[[Any], Any] = lambda wrapper: wrapper) -> bool:
    """Of q, k and v without an adapter on k and v, and of gate and up without one on up."""
    config = SimpleNamespace(
        num_attention_heads=1, num_query_groups=1, kv_channels=2, hidden_size=2, gradient_accumulation_fusion=False
    )
    kinds = (
        (LoRALinearSplitQKV, 6, ("adapter_q", "adapter_k", "adapter_v")),
        (LoRALinearSplitFC1UpGate, 4, ("adapter_gate", "adapter_up")),
    )
    for cls, outputs, (first, *others) in kinds:
        one = bare(
            _Pair,
            linear_in=nn.Linear(2, 1, bias=False),
            linear_out=nn.Linear(1, 2, bias=False),
            dropout=nn.Identity(),
            disable_sequence_parallel_comm=True,
            input_is_parallel=False,
            base_linear_name="linear",
            tp_group=None,
            alpha=1,
            dim=1,
            config=config,
        )
        base = torch.zeros(1, 1, outputs)
        wrapper = bare(
            cls,
            adapter=ModuleDict({first: one, **dict.fromkeys(others)}),  # type: ignore[arg-type]
            to_wrap=SimpleNamespace(config=config),
            _adapter_enabled=True,
            base_linear_forward=lambda x, base=base: (base, None, x),
        )
        try:
            prepare(wrapper).forward(torch.zeros(1, 1, 2))
        except TypeError:  # None is called
            continue
        return False
    return True


def _joins_by_heads_of_all_ranks() -> bool:
    text = text_of(f"{_LORA}:LoRALinearSplitQKV._interleave_qkv")
    return "query.reshape(-1, head_num, head_size)" in text and "parallel" not in text


PATCHES = (
    Patch(
        "parts of fused matrices without an adapter",
        "megatron-bridge",
        "0.6.2",
        f"{_LORA}:LoRALinearSplitQKV.forward",
        "q, k and v (gate and up: LoRALinearSplitFC1UpGate) without an adapter each are called all the same",
        _calls_absent_adapters,
        together,
    ),
    Patch(
        "parts of q, k and v on several ranks",
        "megatron-bridge",
        "0.6.2",
        f"{_LORA}:LoRALinearSplitQKV._interleave_qkv",
        "what the adapters on q, k and v add is joined by the heads and groups of all tensor parallel ranks: it goes "
        "to other tokens with fewer groups than ranks, and fails where ranks do not divide a micro-batch's tokens",
        _joins_by_heads_of_all_ranks,
        together,
    ),
)

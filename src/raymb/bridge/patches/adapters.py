"""Adapters whose sums, initial weights, gradients and checkpoints are right in every layout.

Bridge makes a wrapper around a matrix; `mended` gives it the class below that extends Bridge's own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.bridge.peft.canonical_lora import LoRALinearSplitFC1UpGate, LoRALinearSplitQKV, ModuleDict
from megatron.bridge.peft.dora_layers import DoRALinear, ParallelLinearDoRAAdapter
from megatron.bridge.peft.lora_layers import LoRALinear
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.utils import get_pg_rank, get_pg_size
from torch import nn

from raymb.bridge import low_rank
from raymb.bridge.patches.gated_queries import gates_after_queries, vectors_of_a_head
from raymb.bridge.patches.patch import Patch, text_of

_LORA = "megatron.bridge.peft.canonical_lora"
_DORA = "megatron.bridge.peft.dora_layers"
_ADAPTER = "megatron.bridge.peft.utils:ParallelLinearAdapter"


def initialize(adapters: Iterable[tuple[str, Any]], seed: int) -> None:
    """Draw the first matrix of each adapter as PEFT does, whole and by its name, and keep this rank's part."""
    for name, adapter in adapters:
        weight = adapter.linear_in.weight
        sharded = 1 if adapter.input_is_parallel else 0
        with torch.no_grad():
            if not has_experts(adapter):
                weight.copy_(_part(_drawn(adapter, weight, name, seed), sharded, weight.shape, tensor_group(adapter)))
                continue
            first = dist.get_rank(adapter.ep_group) * len(weight)
            for index, expert in enumerate(weight):
                whole = _drawn(adapter, expert, f"{name}.{first + index}", seed)
                expert.copy_(_part(whole, sharded, expert.shape, tensor_group(adapter)))


def has_experts(adapter: Any) -> bool:
    """Whether its matrices are [experts of this rank, ...]."""
    return adapter.linear_in.weight.ndim == 3


def tensor_group(adapter: Any) -> Any:
    return adapter.expert_tp_group if has_experts(adapter) else adapter.tp_group


def _drawn(adapter: Any, part: torch.Tensor, name: str, seed: int) -> torch.Tensor:
    """Kaiming uniform with a = sqrt(5), over the whole matrix [rank, inputs]."""
    inputs = part.shape[1] * (dist.get_world_size(tensor_group(adapter)) if adapter.input_is_parallel else 1)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(adapter.dim, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)


def _part(whole: torch.Tensor, axis: int, shape: torch.Size, group: Any) -> torch.Tensor:
    return whole.narrow(axis, dist.get_rank(group) * shape[axis], shape[axis])


def mended(wrapper: Any) -> nn.Module:
    """A wrapper of Bridge's, in the class below that mends it."""
    classes = {LoRALinearSplitQKV: _SplitQKV, LoRALinearSplitFC1UpGate: _SplitGateUp, DoRALinear: _DoRALinear}
    wrapper.__class__ = classes.get(type(wrapper), type(wrapper))
    adapter: Any = wrapper.adapter
    if isinstance(adapter, ModuleDict):
        parts: dict[str, Any] = {name: part for name, part in adapter.items() if part is not None}
        for part in parts.values():  # a checkpoint cuts what is named so into gate and up
            part.base_linear_name = part.base_linear_name.replace("linear_fc1", "linear_gate_or_up")
            low_rank.prepare(part)
        wrapper.adapter = ModuleDict(parts)
    elif type(wrapper) is LoRALinear and low_rank.computes(adapter, wrapper.to_wrap):
        wrapper.__class__ = _Whole
        low_rank.prepare(adapter)
    if isinstance(wrapper, _DoRALinear):
        _mend_dora(wrapper)
    return wrapper


def _mend_dora(wrapper: Any) -> None:
    adapter = wrapper.adapter
    adapter.__class__ = _DoRAAdapter
    adapter.init_weight_magnitude(wrapper._get_weight_norm())
    if adapter.input_is_parallel:  # each tensor parallel rank sees its part of the sequence, and they add up
        adapter.weight_magnitude.sequence_parallel = adapter.config.sequence_parallel
    else:  # each rank's rows count in the gradient norm
        set_tensor_model_parallel_attributes(adapter.weight_magnitude, True, 0, 1)


def _forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A matrix's output, and what the adapters of its parts add."""
    output, bias, normed = self.base_linear_forward(x, *args, **kwargs)
    if not self._adapter_enabled:
        return output, bias
    return low_rank.add(output, normed, *self.parts(output)), bias


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


class _DoRAAdapter(ParallelLinearDoRAAdapter):
    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        state, key = super().sharded_state_dict(prefix, sharded_offsets, metadata), f"{prefix}weight_magnitude"
        if self.base_linear_name.endswith("linear_fc1") and self.config.gated_linear_unit:  # type: ignore[attr-defined]
            state[key] = apply_swiglu_sharded_factory(state[key], sharded_offsets)
        return state


class _DoRALinear(DoRALinear):
    adapter: Any  # type: ignore[assignment]
    to_wrap: Any  # type: ignore[assignment]

    def _get_weight_norm(self) -> torch.Tensor:
        """Of each row of W + scaling x B A, in this rank's rows (column parallel) or all of them (row parallel)."""
        adapter, group = self.adapter, self.adapter.tp_group
        with torch.no_grad():
            first, second = adapter.linear_in.weight, adapter.linear_out.weight
            if adapter.input_is_parallel:
                second = _gathered(second, group)
            else:
                first = _gathered(first, group)
            squares = (self.to_wrap.weight + self.scaling * second @ first).float().square().sum(dim=1)
            if adapter.input_is_parallel:
                dist.all_reduce(squares, group=group)
            return squares.sqrt().to(self.to_wrap.weight.dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """m / |W + B A| x (W + B A) x + bias."""
        output, bias, normed = self.base_linear_forward(x)
        if not self._adapter_enabled:
            return output, bias
        added = self.to_wrap.bias if bias is None and getattr(self.to_wrap, "use_bias", False) else None
        scale = self.adapter.get_weight_magnitude() / self._get_weight_norm()
        plain = output if added is None else output - added
        result = scale * (plain + self.adapter(normed.contiguous()))
        return result if added is None else result + added, bias


def _gathered(weight: torch.Tensor, group: Any) -> torch.Tensor:
    """All ranks' rows."""
    parts = [torch.empty_like(weight) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, weight.contiguous(), group=group)
    return torch.cat(parts)


def _bare(cls: type[nn.Module], **attributes: Any) -> Any:
    """A module of a class without what its __init__ needs, to try a method of it."""
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


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
        one = _bare(
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
        wrapper = _bare(
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


def _draws_shards() -> bool:
    return "init_method=self._get_init_fn(column_init_method)" in text_of(f"{_ADAPTER}.__init__")


def _norms_own_columns() -> bool:
    text = text_of(f"{_DORA}:DoRALinear._get_weight_norm")
    return "torch.linalg.norm(weight, dim=1)" in text and "reduce" not in text


def _scales_bias(kind: type[DoRALinear] = DoRALinear) -> bool:
    """Zero weights, a bias of 1, and magnitudes of twice the norm."""
    matrix = nn.Linear(1, 1)
    matrix.use_bias = True  # type: ignore[assignment]
    nn.init.zeros_(matrix.weight)
    nn.init.ones_(matrix.bias)
    adapter = _bare(
        ParallelLinearDoRAAdapter,
        weight_magnitude=torch.full((1,), 2.0),
        forward=torch.zeros_like,
        dropout=nn.Identity(),
    )
    wrapper = _bare(
        kind,
        to_wrap=matrix,
        adapter=adapter,
        training=False,
        _adapter_enabled=True,
        base_linear_forward=lambda x: (matrix(x), None, x),
        _get_weight_norm=lambda: torch.ones(1),
    )
    return wrapper.forward(torch.zeros(1, 1, 1))[0].item() == 2.0


def _says_nothing_of_magnitudes() -> bool:
    """To Megatron's gradient norm, and to its sum of sequence parallel gradients."""
    adapter = _bare(ParallelLinearDoRAAdapter)
    adapter.init_weight_magnitude(torch.ones(1))
    return not {"tensor_model_parallel", "sequence_parallel"} & set(vars(adapter.weight_magnitude))


def _cuts_single_adapters() -> bool:
    return 'split_swiglu = "linear_fc1" in self.base_linear_name' in text_of(f"{_ADAPTER}.sharded_state_dict")


def _leaves_magnitudes_whole() -> bool:
    return "swiglu" not in text_of(f"{_DORA}:ParallelLinearDoRAAdapter.sharded_state_dict")


def _patch(name: str, symbol: str, what_breaks: str, probe: Any, apply: Any = mended) -> Patch:
    return Patch(name, "megatron-bridge", "0.6.2", symbol, what_breaks, probe, apply)


PATCHES = (
    _patch(
        "parts of fused matrices without an adapter",
        f"{_LORA}:LoRALinearSplitQKV.forward",
        "q, k and v (gate and up: LoRALinearSplitFC1UpGate) without an adapter each are called all the same",
        _calls_absent_adapters,
    ),
    _patch(
        "parts of q, k and v on several ranks",
        f"{_LORA}:LoRALinearSplitQKV._interleave_qkv",
        "what the adapters on q, k and v add is joined by the heads and groups of all tensor parallel ranks: it goes "
        "to other tokens with fewer groups than ranks, and fails where ranks do not divide a micro-batch's tokens",
        _joins_by_heads_of_all_ranks,
    ),
    _patch(
        "initial weights of adapters",
        f"{_ADAPTER}.__init__",
        "initial weights are drawn a shard at a time, so they change with the layout",
        _draws_shards,
        initialize,
    ),
    _patch(
        "norm of row parallel matrices",
        f"{_DORA}:DoRALinear._get_weight_norm",
        "the norm of a row parallel matrix is taken over this rank's columns only",
        _norms_own_columns,
    ),
    _patch(
        "bias of fused projections",
        f"{_DORA}:DoRALinear.forward",
        "the bias of a fused projection is scaled, too",
        _scales_bias,
    ),
    _patch(
        "gradients of magnitudes",
        f"{_DORA}:ParallelLinearDoRAAdapter.init_weight_magnitude",
        "magnitudes that are split over tensor parallel ranks count once in the gradient norm, and those that are not "
        "get no part of the gradient from the other ranks",
        _says_nothing_of_magnitudes,
    ),
    _patch(
        "checkpoints of an adapter on gate or up alone",
        f"{_ADAPTER}.sharded_state_dict",
        "a checkpoint cuts an adapter on gate or up alone in two as if it were on both: wrong as soon as tensor "
        "parallel changes",
        _cuts_single_adapters,
    ),
    _patch(
        "checkpoints of magnitudes of gate and up",
        f"{_DORA}:ParallelLinearDoRAAdapter.sharded_state_dict",
        "a checkpoint does not cut the magnitudes of both at all: wrong as soon as tensor parallel changes",
        _leaves_magnitudes_whole,
    ),
)

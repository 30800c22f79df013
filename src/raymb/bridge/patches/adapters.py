"""Adapters whose sums, initial weights, gradients and checkpoints are right in every layout.

Bridge makes a wrapper around a matrix; `mended` gives it the class, here or in low_rank, that extends Bridge's own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from megatron.bridge.peft.canonical_lora import ModuleDict
from megatron.bridge.peft.dora_layers import DoRALinear, ParallelLinearDoRAAdapter
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from torch import nn

from raymb.bridge.patches import low_rank
from raymb.bridge.patches.patch import Patch, bare, text_of

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
    """A wrapper of Bridge's, in the class of raymb's that mends it."""
    low_rank.together(wrapper)
    if isinstance(wrapper.adapter, ModuleDict):
        parts: Any = wrapper.adapter.values()
        for part in parts:  # a checkpoint cuts what is named so into gate and up
            part.base_linear_name = part.base_linear_name.replace("linear_fc1", "linear_gate_or_up")
    elif type(wrapper) is DoRALinear:
        _mend_dora(wrapper)
    return wrapper


def _mend_dora(wrapper: Any) -> None:
    wrapper.__class__, adapter = _DoRALinear, wrapper.adapter
    adapter.__class__ = _DoRAAdapter
    adapter.init_weight_magnitude(wrapper._get_weight_norm())
    if adapter.input_is_parallel:  # each tensor parallel rank sees its part of the sequence, and they add up
        adapter.weight_magnitude.sequence_parallel = adapter.config.sequence_parallel
    else:  # each rank's rows count in the gradient norm
        set_tensor_model_parallel_attributes(adapter.weight_magnitude, True, 0, 1)


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
    adapter = bare(
        ParallelLinearDoRAAdapter,
        weight_magnitude=torch.full((1,), 2.0),
        forward=torch.zeros_like,
        dropout=nn.Identity(),
    )
    wrapper = bare(
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
    adapter = bare(ParallelLinearDoRAAdapter)
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

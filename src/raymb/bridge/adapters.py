"""LoRA and DoRA in Bridge's modules, such that they compute what Hugging Face's PEFT computes, in every layout.

What Bridge 0.6.2 lacks for that, and is done here:
- peft/canonical_lora.py lines 150 and 173: q, k and v (gate and up) without an adapter each are called all the same.
- peft/utils.py line 1025: initial weights are drawn a shard at a time, so they change with the layout.
- peft/dora_layers.py line 130: the norm of a row-parallel matrix is taken over this rank's columns only;
  line 168: the bias of a fused projection is scaled, too; line 42: magnitudes that are split over tensor parallel
  ranks count once in the gradient norm, and those that are not get no part of the gradient from the other ranks.
- peft/utils.py line 1512: a checkpoint cuts an adapter on gate or up alone in two as if it were on both, and
  peft/dora_layers.py line 78 the magnitudes of both not at all: wrong as soon as tensor parallel changes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.bridge.models.conversion.model_bridge import _megatron_local_name_to_global
from megatron.bridge.peft.base import PEFT
from megatron.bridge.peft.canonical_lora import (
    CanonicalLoRA,
    LoRALinearSplitFC1UpGate,
    LoRALinearSplitQKV,
    ModuleDict,
)
from megatron.bridge.peft.dora import DoRA
from megatron.bridge.peft.dora_layers import DoRALinear, ParallelLinearDoRAAdapter
from megatron.bridge.peft.lora import LoRA
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.utils import unwrap_model
from torch import nn

from raymb.run.job import Job


@dataclass
class Adapters(PEFT):
    """Low-rank adapters on the matrices of a plan.

    Args:
        kind: lora or dora.
        dim: rank.
        alpha: an adapter's output is multiplied by alpha / dim.
        split: Bridge's names for parts of fused matrices, each with an adapter of its own.
        whole: names of Megatron's modules with one adapter each.
        seed: of the initial weights.
    """

    kind: str = "lora"
    dim: int = 16
    alpha: int = 32
    dropout: float = 0.0
    split: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    seed: int = 1234

    def __call__(self, model: Any, training: bool = True) -> Any:
        settings: dict[str, Any] = {"dim": self.dim, "alpha": self.alpha, "dropout": self.dropout}
        if self.kind == "lora":
            settings["share_expert_adapters"] = False  # shared by a rank's experts they would depend on the layout
        kinds = [(CanonicalLoRA, self.split), (LoRA if self.kind == "lora" else DoRA, self.whole)]
        self._makers = [kind(target_modules=targets, **settings) for kind, targets in kinds if targets]
        model = super().__call__(model, training)
        initialize(model if isinstance(model, list) else [model], self.seed)
        return model

    def transform(self, module: nn.Module, name: str | None = None, prefix: str | None = None) -> nn.Module:
        for maker in self._makers:
            made = maker.transform(module, name, prefix)
            if made is not module:
                return _mended(made)
        return module


def make_adapters(job: Job) -> Adapters | None:
    """The adapters of a job; None for a run that trains the whole model."""
    targets, peft = job.plan["adapters"], job.spec.peft
    if targets is None:
        return None
    return Adapters(
        kind=peft.peft,
        dim=peft.lora_rank,
        alpha=peft.lora_alpha,
        dropout=peft.lora_dropout,
        split=targets["split"],
        whole=targets["whole"],
        seed=job.spec.train.seed,
    )


def initialize(model: list[Any], seed: int) -> None:
    """Draw the first matrix of each adapter as PEFT does, whole and by its name, and keep this rank's part."""
    for name, adapter in adapters_in(model):
        weight = adapter.linear_in.weight
        sharded = 1 if adapter.input_is_parallel else 0
        with torch.no_grad():
            if not _has_experts(adapter):
                weight.copy_(_part(_drawn(adapter, weight, name, seed), sharded, weight.shape, _tensor_group(adapter)))
                continue
            first = dist.get_rank(adapter.ep_group) * len(weight)
            for index, expert in enumerate(weight):
                whole = _drawn(adapter, expert, f"{name}.{first + index}", seed)
                expert.copy_(_part(whole, sharded, expert.shape, _tensor_group(adapter)))


def trainable_parameters(model: list[Any]) -> int:
    """Parameters of all adapters over all ranks, each counted once. Collective."""
    count = 0
    for _, adapter in adapters_in(model):
        if _has_experts(adapter):
            copy = parallel_state.get_expert_data_parallel_rank()
        else:
            copy = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        for name, weight in adapter.named_parameters() if copy == 0 else ():
            shared = name == "weight_magnitude" and adapter.input_is_parallel
            count += weight.numel() if not shared or dist.get_rank(_tensor_group(adapter)) == 0 else 0
    total = torch.tensor([count], dtype=torch.int64, device="cuda")
    dist.all_reduce(total)
    return int(total.item())


def adapters_in(model: list[Any]) -> Iterator[tuple[str, Any]]:
    """(name over all pipeline stages, adapter) of each adapter on this rank."""
    config = unwrap_model(model)[0].config
    for stage, chunk in enumerate(unwrap_model(model)):
        for name, module in chunk.named_modules():
            if hasattr(module, "linear_in") and hasattr(module, "linear_out"):
                yield _megatron_local_name_to_global(model, config, name, stage), module


def _has_experts(adapter: Any) -> bool:
    """Whether its matrices are [experts of this rank, ...]."""
    return adapter.linear_in.weight.ndim == 3


def _tensor_group(adapter: Any) -> Any:
    return adapter.expert_tp_group if _has_experts(adapter) else adapter.tp_group


def _drawn(adapter: Any, part: torch.Tensor, name: str, seed: int) -> torch.Tensor:
    """Kaiming uniform with a = sqrt(5), over the whole matrix [rank, inputs]."""
    inputs = part.shape[1] * (dist.get_world_size(_tensor_group(adapter)) if adapter.input_is_parallel else 1)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(adapter.dim, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)


def _part(whole: torch.Tensor, axis: int, shape: torch.Size, group: Any) -> torch.Tensor:
    return whole.narrow(axis, dist.get_rank(group) * shape[axis], shape[axis])


def _mended(wrapper: Any) -> nn.Module:
    """A wrapper of Bridge's, in the class below that mends it."""
    mended = {LoRALinearSplitQKV: _SplitQKV, LoRALinearSplitFC1UpGate: _SplitGateUp, DoRALinear: _DoRALinear}
    wrapper.__class__ = mended.get(type(wrapper), type(wrapper))
    adapter: Any = wrapper.adapter
    if isinstance(adapter, ModuleDict):
        parts: dict[str, Any] = {name: part for name, part in adapter.items() if part is not None}
        for part in parts.values():  # a checkpoint cuts what is named so into gate and up
            part.base_linear_name = part.base_linear_name.replace("linear_fc1", "linear_gate_or_up")
        wrapper.adapter = ModuleDict(parts)
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
    """Of a fused matrix: its output, and what the adapters of its parts add."""
    output, bias, normed = self.base_linear_forward(x, *args, **kwargs)
    if not self._adapter_enabled:
        return output, bias
    shares = self.shares()
    sizes = [output.shape[-1] * share // sum(shares.values()) for share in shares.values()]
    parts = [
        self.adapter[name](normed) if name in self.adapter else output.new_zeros(*output.shape[:-1], size)
        for name, size in zip(shares, sizes, strict=True)
    ]
    return output + self.joined(parts), bias


class _SplitQKV(LoRALinearSplitQKV):
    forward = _forward
    to_wrap: Any  # type: ignore[assignment]

    def shares(self) -> dict[str, int]:
        config = self.to_wrap.config
        heads, groups = config.num_attention_heads, config.num_query_groups
        return {"adapter_q": heads, "adapter_k": groups, "adapter_v": groups}

    def joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return self._interleave_qkv(*parts)


class _SplitGateUp(LoRALinearSplitFC1UpGate):
    forward = _forward

    def shares(self) -> dict[str, int]:
        return {"adapter_gate": 1, "adapter_up": 1}

    def joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts, dim=-1)


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

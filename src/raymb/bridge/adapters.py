"""LoRA and DoRA in Bridge's modules, such that they compute what Hugging Face's PEFT computes, in every layout; what
Bridge lacks for that is mended in raymb.bridge.patches.adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from megatron.bridge.models.conversion.model_bridge import _megatron_local_name_to_global
from megatron.bridge.peft.base import PEFT
from megatron.bridge.peft.canonical_lora import CanonicalLoRA
from megatron.bridge.peft.dora import DoRA
from megatron.bridge.peft.lora import LoRA
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from torch import nn

from raymb.bridge.freezing import EMBEDDING, OUTPUT, let_gradients_through, source_of
from raymb.bridge.patches.adapter_norms import add_before_norm
from raymb.bridge.patches.adapters import has_experts, initialize, mended, tensor_group
from raymb.bridge.patches.gated_queries import counting_gates
from raymb.plan import adapters as planned
from raymb.run.job import Job

_SAVED = {planned.EMBEDDING: EMBEDDING, planned.OUTPUT: OUTPUT}


@dataclass
class Adapters(PEFT):
    """Low-rank adapters on the matrices of a plan.

    Args:
        kind: lora or dora.
        dim: rank.
        alpha: an adapter's output is multiplied by alpha / dim, or with rslora by alpha / sqrt(dim).
        split: Bridge's names for parts of fused matrices, each with an adapter of its own.
        whole: names of Megatron's modules with one adapter each.
        saved: Megatron's names of parameters of the model that are trained, too.
        seed: of the initial weights.
    """

    kind: str = "lora"
    dim: int = 16
    alpha: float = 32
    rslora: bool = False
    dropout: float = 0.0
    split: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)
    seed: int = 1234

    def __call__(self, model: Any, training: bool = True) -> Any:
        alpha = self.alpha * math.sqrt(self.dim) if self.rslora else self.alpha  # Bridge divides it by dim
        settings: dict[str, Any] = {"dim": self.dim, "alpha": alpha, "dropout": self.dropout}
        if self.kind == "lora":
            settings["share_expert_adapters"] = False  # shared by a rank's experts they would depend on the layout
        kinds = [(CanonicalLoRA, self.split), (LoRA if self.kind == "lora" else DoRA, self.whole)]
        self._makers = [kind(target_modules=targets, **settings) for kind, targets in kinds if targets]
        model = super().__call__(model, training)
        for chunk in unwrap_model(model) if self.saved else ():  # Bridge does so where adapters alone are trained
            let_gradients_through(chunk)
        initialize(adapters_in(model if isinstance(model, list) else [model]), self.seed)
        return model

    def freeze_model(self, model: Any, training: bool = True) -> None:
        """But for what is trained in full."""
        super().freeze_model(model, training)
        for chunk in unwrap_model(model):
            for name, parameter in chunk.named_parameters():
                parameter.requires_grad |= source_of(chunk, name) in self.saved

    def transform(self, module: nn.Module, name: str | None = None, prefix: str | None = None) -> nn.Module:
        for maker in self._makers:
            with counting_gates(module, name):
                made = maker.transform(module, name, prefix)
            if made is not module:
                return add_before_norm(mended(made))
        return module


def make_adapters(job: Job) -> Adapters | None:
    """The adapters of a job; None for a run that trains the whole model."""
    targets, peft = job.plan.adapters, job.spec.peft
    if targets is None:
        return None
    return Adapters(
        kind=peft.peft,
        dim=peft.lora_rank,
        alpha=peft.lora_alpha,
        rslora=peft.use_rslora,
        dropout=peft.lora_dropout,
        split=targets.split,
        whole=targets.whole,
        saved=[_SAVED[name] for name in targets.saved],
        seed=job.spec.train.seed,
    )


def trainable_parameters(model: list[Any]) -> int:
    """Parameters of all adapters over all ranks, each counted once; without modules_to_save. Collective."""
    count = 0
    for _, adapter in adapters_in(model):
        if has_experts(adapter):
            copy = parallel_state.get_expert_data_parallel_rank()
        else:
            copy = parallel_state.get_data_parallel_rank(with_context_parallel=True)
        for name, weight in adapter.named_parameters() if copy == 0 else ():
            shared = name == "weight_magnitude" and adapter.input_is_parallel
            count += weight.numel() if not shared or dist.get_rank(tensor_group(adapter)) == 0 else 0
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

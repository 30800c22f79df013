"""An independent fine-tuning: a plain Hugging Face model and torch's AdamW, one process, no Megatron."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

Sample = tuple[Any, ...]
"""(token ids, 1 where the token is a target), and for a vision-language model what else it is called with"""
Batch = list[Sample]


def train(
    model_dir: Path,
    batches: list[Batch],
    learning_rate: float,
    adapter: Path | None = None,
    tied: bool = False,
    frozen: str = "",
) -> list[dict[str, Any]]:
    """Loss (mean over the batch's trained tokens) and gradient norm (before clipping to 1) of every step, fp32, cosine
    decay to 0, weight decay 0.01 on matrices only. Each sample is run alone, without padding or packing.

    Args:
        adapter: train this PEFT adapter instead of the model.
        tied: q, k and v share their first matrix, and so do gate and up.
        frozen: parameters that stay as they are, a regular expression.
    """
    model = _model(model_dir, adapter)
    if tied:
        _tie(model)
    for name, parameter in model.named_parameters() if frozen else ():
        parameter.requires_grad = not re.search(frozen, name)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": [], "weight_decay": decay} for decay in (0.01, 0.0)]
    for name, parameter in trained:
        is_matrix = parameter.dim() > 1 and not name.endswith("bias")  # experts' biases are stacked
        groups[0 if is_matrix else 1]["params"].append(parameter)
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95), eps=1e-8)
    steps = []
    for index, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * index / len(batches)))
        optimizer.zero_grad()
        loss = _loss(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], 1.0)
        optimizer.step()
        steps.append({"step": index + 1, "loss": loss.item(), "grad_norm": norm.item()})
    return steps


def _loss(model: Any, batch: Batch) -> torch.Tensor:
    total, count = torch.tensor(0.0), 0
    for ids, trained, *more in batch:
        logits = model(input_ids=torch.tensor([ids[:-1]]), **(more[0] if more else {})).logits[0]
        losses = cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        total = total + (losses * torch.tensor(trained[1:])).sum()
        count += sum(trained[1:])
    return total / count


def _model(model_dir: Path, adapter: Path | None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    has_vision = hasattr(AutoConfig.from_pretrained(model_dir), "vision_config")
    auto: Any = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    # eager: the implementation that knows soft caps and sinks
    model = auto.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter, is_trainable=True)


def _tie(model: Any) -> None:
    for owner in list(model.modules()):
        for names in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            modules = [getattr(owner, name, None) for name in names]
            for module in modules:
                if hasattr(module, "lora_A"):
                    module.lora_A = modules[0].lora_A

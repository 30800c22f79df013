"""An independent fine-tuning: a plain Hugging Face model and torch's AdamW, one process, no Megatron."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

Batch = dict[str, torch.Tensor]


def train(
    model_dir: Path, batches: list[Batch], learning_rate: float, adapter: Path | None = None
) -> list[dict[str, Any]]:
    """Loss (mean over the batch's trained tokens) and gradient norm (before clipping to 1) of every step, fp32, cosine
    decay to 0, weight decay 0.01 on matrices only.

    Args:
        batches: tokens, labels, loss_mask, each (global batch, sequence).
        adapter: train this PEFT adapter instead of the model.
    """

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        return _loss_sum(model, batch["tokens"], batch["labels"], batch["loss_mask"])

    return _train(model_dir, batches, learning_rate, adapter, loss)


def train_rows(model_dir: Path, packs: list[Batch], learning_rate: float) -> list[dict[str, Any]]:
    """The same for packed batches, each row taken out of its pack and run alone.

    Args:
        packs: as above, with cu_seqlens_q and, where rows are padded, cu_seqlens_q_padded, (global batch, rows + 1).
    """

    def loss(model: Any, batch: Batch) -> torch.Tensor:
        total = torch.tensor(0.0)
        for index, tokens in enumerate(batch["tokens"]):
            starts = batch.get("cu_seqlens_q_padded", batch["cu_seqlens_q"])[index].tolist()
            for start, end in itertools.pairwise(starts):
                if batch["loss_mask"][index, start:end].any():
                    row = (x[None, start:end] for x in (tokens, batch["labels"][index], batch["loss_mask"][index]))
                    total = total + _loss_sum(model, *row)
        return total

    return _train(model_dir, packs, learning_rate, None, loss)


def _loss_sum(model: Any, tokens: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=tokens).logits
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return (losses * mask.flatten()).sum()


def _train(
    model_dir: Path,
    batches: list[Batch],
    learning_rate: float,
    adapter: Path | None,
    loss_sum: Callable[[Any, Batch], torch.Tensor],
) -> list[dict[str, Any]]:
    model = _model(model_dir, adapter)
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
        loss = loss_sum(model, batch) / batch["loss_mask"].sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], 1.0)
        optimizer.step()
        steps.append({"step": index + 1, "loss": loss.item(), "grad_norm": norm.item()})
    return steps


def _model(model_dir: Path, adapter: Path | None) -> Any:
    from transformers import AutoModelForCausalLM

    # eager: the implementation that knows soft caps and sinks
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter, is_trainable=True)

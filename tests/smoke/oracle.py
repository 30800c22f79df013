"""An independent fine-tuning: a plain Hugging Face model and torch's AdamW, one process, no Megatron."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy


def train(
    model_dir: Path, batches: list[dict[str, torch.Tensor]], learning_rate: float, weight_decay: float = 0.01
) -> list[dict[str, Any]]:
    """Loss (mean over the batch's trained tokens) and gradient norm (before clipping to 1) of every step, fp32, cosine
    decay to 0, weight decay on matrices only.

    Args:
        batches: tokens, labels, loss_mask, each (global batch, sequence).
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8)
    steps = []
    for index, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * index / len(batches)))
        optimizer.zero_grad()
        logits = model(input_ids=batch["tokens"]).logits
        mask = batch["loss_mask"].float()
        losses = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        loss = (losses * mask.flatten()).sum() / mask.sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append({"step": index + 1, "loss": loss.item(), "grad_norm": norm.item()})
    return steps

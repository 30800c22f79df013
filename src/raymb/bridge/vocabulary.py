"""Rows that a vocabulary is padded with, to divide it among tensor parallel workers, are no tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from megatron.core.utils import get_pg_rank


def leave_out_padding(vocabulary: int, model: list[Any]) -> list[Any]:
    """Give padding no probability: its rows of the output layer are zeros, and exp(0) would be a part of every sum; a
    hook of Bridge's provider.

    Args:
        vocabulary: rows of the Hugging Face model.
    """
    for chunk in model:
        for name, module in chunk.named_modules():
            if name.rpartition(".")[2] == "output_layer":
                module.register_forward_hook(partial(_without_padding, vocabulary))
    return model


def _without_padding(vocabulary: int, layer: Any, args: Any, output: tuple[torch.Tensor, Any]) -> None:
    """In place: logits are the largest tensor of all."""
    logits, _ = output
    width = logits.shape[-1]
    before = 0 if width == layer.output_size else get_pg_rank(layer.tp_group) * width
    if before + width > vocabulary:
        logits[..., max(0, vocabulary - before) :] = torch.finfo(logits.dtype).min

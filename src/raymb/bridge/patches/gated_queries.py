"""Adapters on queries whose projection makes a gate for each head's attention, too (Qwen3-Next, Qwen3.5)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from raymb.bridge.patches.patch import Patch, text_of

_TRANSFORM = "megatron.bridge.peft.canonical_lora:CanonicalLoRA.transform"


def vectors_of_a_head(config: Any) -> int:
    """That a head's part of the queries' projection makes: its query, and in some families a gate."""
    return 2 if getattr(config, "attention_output_gate", False) else 1


def gates_after_queries(columns: torch.Tensor, config: Any) -> torch.Tensor:
    """The columns of a key-value group's heads (last dimension) as Megatron has them: Hugging Face has each head's
    query and gate side by side, Megatron all queries of a group before all of its gates."""
    if vectors_of_a_head(config) == 1:
        return columns
    return columns.unflatten(-1, (-1, 2, config.kv_channels)).transpose(-3, -2).flatten(-3)


@contextlib.contextmanager
def counting_gates(module: nn.Module, name: str | None) -> Iterator[None]:
    """While Bridge makes adapters for the parts of a matrix of queries, keys and values."""
    config: Any = getattr(module, "config", None)
    if name != "linear_qkv" or vectors_of_a_head(config) == 1:
        yield
        return
    heads = config.num_attention_heads
    config.num_attention_heads = heads * vectors_of_a_head(config)
    try:
        yield
    finally:
        config.num_attention_heads = heads


def _counts_no_gates() -> bool:
    text = text_of(_TRANSFORM)
    return "q_out_features = m.config.kv_channels * m.config.num_attention_heads" in text and "output_gate" not in text


PATCHES = (
    Patch(
        "gates among queries",
        "megatron-bridge",
        "0.6.2",
        _TRANSFORM,
        "an adapter on queries has as many outputs as they, also where their projection makes a gate for each head",
        _counts_no_gates,
        counting_gates,
    ),
)

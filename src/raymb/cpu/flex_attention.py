"""torch's FlexAttention with a gradient on the CPU, where torch 2.11 has none ("does not support backward on CPU").

Bridge 0.6.2 calls it for Gemma 2's capped scores (models/gemma/gemma2_provider.py). Scores are whole matrices here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def install() -> None:
    import torch.nn.attention.flex_attention as module

    module.flex_attention = flex_attention  # type: ignore[assignment]
    module.create_block_mask = create_block_mask  # type: ignore[assignment]


def create_block_mask(
    mask_mod: Callable[..., torch.Tensor], B: Any, H: Any, Q_LEN: int, KV_LEN: int, device: Any = None
) -> torch.Tensor:
    """[Q_LEN, KV_LEN], True where the score counts. One mask for every sample (B) and head (H)."""
    if B is not None or H is not None:
        raise NotImplementedError("a mask that differs among samples or heads")
    return mask_mod(0, 0, *_positions(Q_LEN, KV_LEN))


def flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable[..., torch.Tensor],
    block_mask: torch.Tensor,
    scale: float,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """[batch, heads, queries, channels] attention, the scores changed by score_mod, softmax in fp32."""
    if enable_gqa:
        repeats = query.size(1) // key.size(1)
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(-1, -2)).float() * scale
    scores = score_mod(scores, 0, 0, *_positions(*scores.shape[-2:]))
    weights = scores.masked_fill(~block_mask, float("-inf")).softmax(-1)
    return weights.to(value.dtype) @ value


def _positions(queries: int, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(queries)[:, None], torch.arange(keys)[None, :]

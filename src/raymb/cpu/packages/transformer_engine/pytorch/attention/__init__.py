"""transformer_engine.pytorch.attention: dot product attention and rotary embeddings."""

from typing import Any

import torch

from transformer_engine.pytorch.attention import rope
from transformer_engine.pytorch.attention.dot_product_attention import DotProductAttention

__all__ = ["DotProductAttention", "rope"]


class _SplitAlongDim:
    """torch.split under the name that Megatron looks for."""

    @staticmethod
    def apply(x: torch.Tensor, dim: int, sizes: Any) -> tuple[torch.Tensor, ...]:
        return torch.split(x, sizes, dim=dim)

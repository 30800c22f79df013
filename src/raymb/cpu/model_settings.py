"""The provider fields that ask for CUDA kernels outside Transformer Engine."""

from __future__ import annotations

from typing import Any

_CUDA_KERNELS = (
    "apply_rope_fusion",
    "gradient_accumulation_fusion",
    "masked_softmax_fusion",
    "moe_router_fusion",
    "persist_layer_norm",
    "use_te_rng_tracker",
)


def cpu_model_settings() -> dict[str, Any]:
    """Fields of a Bridge GPT provider for a machine without CUDA kernels. The layer spec is the one GPUs train."""
    return {"use_cpu_initialization": True, **dict.fromkeys(_CUDA_KERNELS, False)}

"""The provider fields that select Megatron-Core's local (plain torch) layers and no fused kernels."""

from __future__ import annotations

from typing import Any

_CUDA_KERNELS = (
    "apply_rope_fusion",
    "bias_activation_fusion",
    "bias_dropout_fusion",
    "cross_entropy_loss_fusion",
    "gradient_accumulation_fusion",
    "masked_softmax_fusion",
    "moe_permute_fusion",
    "persist_layer_norm",
    "use_te_rng_tracker",
)


def local_model_settings() -> dict[str, Any]:
    """Fields of a Bridge GPT provider for a machine without CUDA kernels."""
    from megatron.bridge.models.gpt_provider import local_layer_spec

    return {
        "transformer_layer_spec": local_layer_spec,
        "use_cpu_initialization": True,
        **dict.fromkeys(_CUDA_KERNELS, False),
    }

"""Which fused kernels a model can have. Providers that Bridge makes of a Hugging Face model leave most of them off."""

from __future__ import annotations

import importlib
from typing import Any

import torch.nn.functional as functional

from raymb.spec.training import Performance


def fusion_settings(provider: Any, performance: Performance, precision: str, fsdp: bool) -> dict[str, bool]:
    """Provider fields.

    Args:
        provider: of the Hugging Face model.
        precision: bf16 or fp32, of the weights.
        fsdp: whether Megatron-FSDP is used. Megatron-Core 0.19.2's takes a gradient that was added in place for the
            whole one: of tied embeddings, it drops what the lookup adds.
    """
    rope = provider.position_embedding_type == "rope" and not provider.multi_latent_attention
    # Megatron-Core 0.19.2's fused kernel leaves an attention factor out: of packed rows without a word.
    rope = rope and not getattr(provider, "yarn_mscale", None)
    swiglu = provider.activation_func is functional.silu and provider.gated_linear_unit
    clamped = getattr(provider, "activation_func_clamp_value", None) is not None  # the fused SwiGLU would not clamp
    scaled = hasattr(provider, "mlp_multipliers")  # Falcon-H1's scales within its activation
    activation = provider.bias_activation_fusion or (swiglu and not clamped and not scaled)
    return {
        "apply_rope_fusion": performance.fused_rope and rope,
        "bias_activation_fusion": performance.fused_activation and activation,
        "gradient_accumulation_fusion": performance.fused_gradient_accumulation
        and precision == "bf16"
        and not fsdp
        and _can_accumulate_in_place(),
    }


def _can_accumulate_in_place() -> bool:
    """With APEX, or after raymb.bridge.patches.fusions.install where Transformer Engine's kernel does it."""
    return importlib.import_module("megatron.core.tensor_parallel.layers")._grad_accum_fusion_available

"""Fused kernels: which of them a model can have, and those of Transformer Engine in the places where Megatron-Core has
APEX's or compiles its own. Providers that Bridge makes of a Hugging Face model leave most of them off."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch
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
    swiglu = provider.activation_func is functional.silu and provider.gated_linear_unit
    clamped = getattr(provider, "activation_func_clamp_value", None) is not None  # the fused SwiGLU would not clamp
    activation = provider.bias_activation_fusion or (swiglu and not clamped)
    return {
        "apply_rope_fusion": performance.fused_rope and rope,
        "bias_activation_fusion": performance.fused_activation and activation,
        "gradient_accumulation_fusion": performance.fused_gradient_accumulation
        and precision == "bf16"
        and not fsdp
        and _can_accumulate_in_place(),
    }


def install() -> None:
    """Lend Megatron-Core 0.19.2 Transformer Engine's kernels, where there are any; after Megatron is imported."""
    _leave_out_warm_up()
    try:
        kernels = importlib.import_module("transformer_engine_torch")
        gemm = importlib.import_module("transformer_engine.pytorch.cpp_extensions").general_gemm
        swiglu = kernels.swiglu, kernels.dswiglu
    except (ImportError, AttributeError):  # the stand-in of CPU workers
        return
    _accumulate_in_place(gemm)
    _use_swiglu(*swiglu)


def _leave_out_warm_up() -> None:
    """megatron-bridge 0.6.2, training/initialize.py compiles bias_swiglu or bias_gelu and bias_dropout_add before the
    first step (40 s where no cache has them), which most models never call. What is called compiles then."""
    initialize = importlib.import_module("megatron.bridge.training.initialize")
    if hasattr(initialize, "_warmup_jit_function"):
        initialize._warmup_jit_function = lambda *args: None  # type: ignore[attr-defined]


def _accumulate_in_place(gemm: Any) -> None:
    """A weight's gradient is added to the buffer within its matrix product. Transformer Engine's layers do that
    themselves; the output layer is Megatron's own and asks for APEX's kernel."""
    layers = importlib.import_module("megatron.core.tensor_parallel.layers")
    if layers._grad_accum_fusion_available:
        return

    def add_weight_gradient(inputs: torch.Tensor, gradient: torch.Tensor, total: torch.Tensor) -> None:
        """total [out, in] += gradient [tokens, out] transposed x inputs [tokens, in]"""
        gemm(inputs, gradient, out_dtype=total.dtype, layout="NT", out=total, accumulate=True, grad=True)

    layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(  # type: ignore[attr-defined]
        wgrad_gemm_accum_fp32=add_weight_gradient, wgrad_gemm_accum_fp16=add_weight_gradient
    )
    layers._grad_accum_fusion_available = True  # type: ignore[attr-defined]


def _can_accumulate_in_place() -> bool:
    """With APEX, or after `install` where Transformer Engine's kernel does it."""
    return importlib.import_module("megatron.core.tensor_parallel.layers")._grad_accum_fusion_available


def _use_swiglu(forward: Any, backward: Any) -> None:
    """Megatron-Core has torch.compile make its SwiGLU; Transformer Engine brings one."""
    module = importlib.import_module("megatron.core.fusions.fused_bias_swiglu")
    compiled = module.SwiGLUFunction
    if isinstance(compiled, SimpleNamespace):
        return

    class SwiGLU(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(inputs)
            return forward(inputs, None)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return backward(gradient.contiguous(), ctx.saved_tensors[0], None)

    def apply(inputs: torch.Tensor, fp8_input_store: bool, cpu_offload_input: bool) -> torch.Tensor:
        if fp8_input_store or cpu_offload_input:
            return compiled.apply(inputs, fp8_input_store, cpu_offload_input)
        return SwiGLU.apply(inputs)  # type: ignore[no-any-return]

    module.SwiGLUFunction = SimpleNamespace(apply=apply)  # type: ignore[attr-defined]

"""Transformer Engine's kernels in the places where Megatron-Core has APEX's or compiles its own."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import torch

from raymb.bridge.patches.patch import Patch, text_of

_LAYERS = "megatron.core.tensor_parallel.layers"
_WEIGHT_GRADIENT = f"{_LAYERS}:LinearWithGradAccumulationAndAsyncCommunication.backward"
_SWIGLU = "megatron.core.fusions.fused_bias_swiglu"


def install() -> None:
    """Lend Megatron-Core 0.19.2 Transformer Engine's kernels, where there are any; after Megatron is imported."""
    try:
        kernels = importlib.import_module("transformer_engine_torch")
        gemm = importlib.import_module("transformer_engine.pytorch.cpp_extensions").general_gemm
        swiglu = kernels.swiglu, kernels.dswiglu
    except (ImportError, AttributeError):  # the stand-in of CPU workers
        return
    _accumulate_in_place(gemm)
    _use_swiglu(*swiglu)


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


def _asks_for_apex() -> bool:
    """And for nothing else where APEX is not installed."""
    calls_it = "fused_weight_gradient_mlp_cuda.wgrad_gemm_accum_fp32(" in text_of(_WEIGHT_GRADIENT)
    gives_up = "import fused_weight_gradient_mlp_cuda except ImportError: _grad_accum_fusion_available = False"
    return calls_it and gives_up in text_of(_LAYERS)


def _compiles_swiglu() -> bool:
    compiled = "return swiglu(input)" in text_of(f"{_SWIGLU}:SwiGLUFunction.forward")
    return compiled and "@jit_fuser" in text_of(f"{_SWIGLU}:swiglu") and "transformer_engine" not in text_of(_SWIGLU)


PATCHES = (
    Patch(
        "weight gradients added in place",
        "megatron-core",
        "0.19.2",
        _WEIGHT_GRADIENT,
        "Transformer Engine's layers add a weight's gradient to the buffer within its matrix product; the output layer "
        "is Megatron's own and asks for APEX's kernel",
        _asks_for_apex,
        install,
    ),
    Patch(
        "SwiGLU without torch.compile",
        "megatron-core",
        "0.19.2",
        f"{_SWIGLU}:SwiGLUFunction",
        "has torch.compile make a SwiGLU that Transformer Engine brings",
        _compiles_swiglu,
        install,
    ),
)

"""transformer_engine.pytorch: the modules that Megatron-Core's and Megatron-Bridge's classes inherit from."""

from transformer_engine.pytorch import attention, distributed, fp8, ops, optimizers
from transformer_engine.pytorch.attention import DotProductAttention
from transformer_engine.pytorch.fp8 import autocast, fp8_autocast, fp8_model_init, quantized_model_init
from transformer_engine.pytorch.grouped_linear import GroupedLinear
from transformer_engine.pytorch.linear import LayerNormLinear, Linear
from transformer_engine.pytorch.norm import LayerNorm, RMSNorm

__all__ = [
    "DotProductAttention",
    "GroupedLinear",
    "LayerNorm",
    "LayerNormLinear",
    "Linear",
    "RMSNorm",
    "attention",
    "autocast",
    "distributed",
    "fp8",
    "fp8_autocast",
    "fp8_model_init",
    "ops",
    "optimizers",
    "quantized_model_init",
]


def initialize_ub(*args: object, **kwargs: object) -> None:
    """User buffers overlap communication with matrix products inside CUDA kernels."""
    raise RuntimeError("the CPU backend has no user buffers: leave model.tp_comm_overlap and comm_overlap off")

"""Whose attention kernels a model on GPUs uses, and what they are handed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from megatron.core.transformer.enums import AttnBackend

from raymb.bridge.patches.patch import Patch, text_of, upstream
from raymb.errors import SpecError

_GEMMA = "megatron.bridge.models.gemma.gemma_bridge:GemmaBridge.provider_bridge"
_GEMMA3 = "megatron.bridge.models.gemma.gemma3_provider:Gemma3ModelProvider"
_LAYER = "megatron.core.transformer.transformer_layer:TransformerLayer"
_BASE = "megatron.core.transformer.module:GraphableMegatronModule"
_WITH_MASKS = ("get_layer_static_inputs", "_get_te_cuda_graph_replay_args")


def leave_attention_to_transformer_engine(provider: Any) -> None:
    """It has kernels of its own for such heads, and chooses by itself, as for other families."""
    if provider.attention_backend in (AttnBackend.flash, AttnBackend.unfused):
        provider.attention_backend = AttnBackend.auto


def check_attention(provider: Any) -> None:
    """Of a worker on a GPU, after the user's overrides.

    Raises:
        SpecError: flash-attn was asked for, and is not installed here.
    """
    packages = ("flash_attn", "flash_attn_3", "flash_attn_interface")
    if provider.attention_backend is AttnBackend.flash and not any(map(importlib.util.find_spec, packages)):
        raise SpecError(
            "model.attention_backend=flash needs the package flash-attn, and it is not installed on the workers",
            "install it there, or leave the override out: Transformer Engine has kernels of its own",
        )


def record_layers_without_masks() -> None:
    """Causal attention reads none, nor is it given one without graphs."""
    layer, base = upstream(_LAYER), upstream(_BASE)
    for name in _WITH_MASKS:
        setattr(layer, name, getattr(base, name))


def _gemma_asks_for_flash_attn() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")  # first: it is part of a circle
    by_default = upstream(_GEMMA3).attention_backend is AttnBackend.flash
    return by_default and "provider.attention_backend = AttnBackend.flash" in text_of(_GEMMA)


def _layers_have_masks() -> bool:
    return all("attention_mask" in text_of(f"{_LAYER}.{name}") for name in _WITH_MASKS) and not any(
        "attention_mask" in text_of(f"{_BASE}.{name}") for name in _WITH_MASKS
    )


PATCHES = (
    Patch(
        "attention of Gemma",
        "megatron-bridge",
        "0.6.2",
        _GEMMA,
        "asks for the package flash-attn, and so does Gemma3ModelProvider, as Transformer Engine 1.8 had no other "
        "kernel for heads of 256; without it the first step of such a Gemma fails on GPUs. Transformer Engine 2.20 has "
        "such kernels",
        _gemma_asks_for_flash_attn,
        leave_attention_to_transformer_engine,
    ),
    Patch(
        "recorded layers without masks",
        "megatron-core",
        "0.19.2",
        f"{_LAYER}.get_layer_static_inputs",
        "with CUDA graphs every recorded layer has a mask, [micro batch, 1, sequence, sequence] bytes, of its own, "
        "filled with zeros before each launch (_get_te_cuda_graph_replay_args): 3 GB at 8 x 4096 tokens in 24 layers",
        _layers_have_masks,
        record_layers_without_masks,
    ),
)

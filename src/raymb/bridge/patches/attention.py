"""Whose attention kernels a model on GPUs uses."""

from __future__ import annotations

import importlib.util
from typing import Any

from megatron.core.transformer.enums import AttnBackend

from raymb.errors import SpecError


def leave_attention_to_transformer_engine(provider: Any) -> None:
    """megatron-bridge 0.6.2, models/gemma/gemma_bridge.py line 76 and gemma3_provider.py line 78 ask for the package
    flash-attn, as Transformer Engine 1.8 had no other kernel for heads of 256; without it the first step of such a
    Gemma fails on GPUs. Transformer Engine 2.20 has such kernels, and chooses by itself, as for other families."""
    if provider.attention_backend is AttnBackend.flash:
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

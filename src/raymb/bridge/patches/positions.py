"""Rotary positions and attention windows of a Hugging Face model, of which Bridge hands on a part."""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import torch

from raymb.bridge.patches.patch import Patch, text_of
from raymb.model.families import family_of

_KWARGS = "megatron.bridge.models.conversion.model_bridge:MegatronModelBridge.hf_config_to_provider_kwargs"
_LLAMA = "megatron.bridge.models.llama.llama_bridge:LlamaBridge.provider_bridge"
_OSS = "megatron.bridge.models.gpt_oss.gpt_oss_bridge:GPTOSSBridge.provider_bridge"
_QWEN = "megatron.bridge.models.qwen.qwen2_bridge:Qwen2Bridge.provider_bridge"
_ROTARY = "megatron.core.models.common.embeddings.rope_utils"
_LLAMA3_NUMBERS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def give_rotary_frequencies(hf_config: Any, provider: Any, architecture: str) -> None:
    """transformers' own, whatever their scaling, and the factor by which it multiplies sines and cosines."""
    name = family_of(architecture).rotary
    if not name:
        return
    module = importlib.import_module(type(hf_config).__module__.replace("configuration_", "modeling_"))
    rotary = getattr(module, name)(hf_config)
    provider.position_embedding_type = "rope"
    provider.rope_scaling, provider.seq_len_interpolation_factor = False, None
    scaled = rotary.attention_scaling != 1
    # Megatron-Core's factor is 1 + 0.1 x yarn_mscale x ln(yarn_rotary_scaling_factor).
    provider.yarn_rotary_scaling_factor = math.exp(10) if scaled else None
    provider.yarn_mscale, provider.yarn_mscale_all_dim = (rotary.attention_scaling - 1, 0.0) if scaled else (None, None)
    provider.register_pre_wrap_hook(partial(_put_frequencies, rotary.inv_freq))


def _put_frequencies(frequencies: torch.Tensor, chunks: list[Any]) -> list[Any]:
    for chunk in chunks:
        chunk.rotary_pos_emb.inv_freq = frequencies.to(chunk.rotary_pos_emb.inv_freq)
    return chunks


def give_windows(hf_config: Any, provider: Any, architecture: str, seq_length: int) -> None:
    """Of the layers that have one, where a sequence can be longer."""
    family = family_of(architecture)
    which = family.window_layers
    if which in ("", "by Bridge"):
        return
    layers, window = hf_config.num_hidden_layers, hf_config.sliding_window
    has_window = [
        which == "all" or kind == "sliding_attention" for kind in getattr(hf_config, "layer_types", [""] * layers)
    ]
    if family.rotary_only_with_window:
        provider.no_rope_freq = [int(window is not None and not one) for one in has_window]
    provider.window_size = provider.window_attn_skip_freq = None
    if window is not None and window < seq_length and any(has_window):
        provider.window_size, provider.window_attn_skip_freq = (window - 1, 0), list(map(int, has_window))
        provider.cp_comm_type = "a2a"  # Transformer Engine's ring of context parallel workers knows no windows


def rotate_samples_without_tokens() -> None:
    """Packed rows of a batch have as many samples as the one with most, some of them without a token."""
    rope: Any = importlib.import_module(_ROTARY)
    if hasattr(rope, "_raymb_rotate"):
        return
    rotate = rope._raymb_rotate = rope._rotate_half

    def rotate_if_any(x: torch.Tensor, rotary_interleaved: bool) -> torch.Tensor:
        return rotate(x, rotary_interleaved) if x.numel() else x

    rope._rotate_half = rotate_if_any


def _fails_without_tokens() -> bool:
    return "x_new.view(x_new.shape[0], x_new.shape[1], x_new.shape[2], -1)" in text_of(f"{_ROTARY}:_rotate_half")


def _drops_rotary_settings() -> bool:
    """Numbers of Llama 3 and defaults of yarn, and gpt-oss has the published model's as constants."""
    drops_llama3 = not any(name in text_of(_LLAMA) for name in _LLAMA3_NUMBERS)
    return drops_llama3 and "linear" not in text_of(_KWARGS) and "yarn_rotary_scaling_factor = 32.0" in text_of(_OSS)


def _drops_windows() -> bool:
    return "sliding_window" not in text_of(_QWEN) and "window_attn_skip_freq = 2" in text_of(_OSS)


PATCHES = (
    Patch(
        "rotary frequencies",
        "megatron-bridge",
        "0.6.2",
        _KWARGS,
        "drops linear, dynamic and longrope scaling and three of Llama 3's four numbers without a word, asks for "
        "numbers of yarn that files may leave out, and has those of the published gpt-oss as constants; rotary "
        "positions then are another model's",
        _drops_rotary_settings,
        give_rotary_frequencies,
    ),
    Patch(
        "attention windows",
        "megatron-bridge",
        "0.6.2",
        _QWEN,
        "drops the sliding windows of Qwen2 and 3 without a word, and GPTOSSBridge has which layers have one as a "
        "constant",
        _drops_windows,
        give_windows,
    ),
    Patch(
        "interleaved rotary positions of no tokens",
        "megatron-core",
        "0.19.2",
        f"{_ROTARY}:_rotate_half",
        "a packed sample without tokens, with which a row's list of samples is filled, is a RuntimeError (ERNIE 4.5)",
        _fails_without_tokens,
        rotate_samples_without_tokens,
    ),
)

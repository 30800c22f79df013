"""What config.json says of a model's attention windows and of the scaling of its rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS_OF_LAYERS = ("full_attention", "sliding_attention")


def window_of(text: Mapping[str, Any]) -> int | None:
    """Tokens that a layer with a sliding window looks at, itself included; None where no layer has a window.

    Args:
        text: the language part of config.json.
    """
    window = text.get("sliding_window")
    qwen = str(text.get("model_type")).startswith("qwen")
    if not isinstance(window, int) or not text.get("use_sliding_window", not qwen):
        return None
    kinds = text.get("layer_types")
    return window if not isinstance(kinds, list) or "sliding_attention" in kinds else None


def layers_without_window(text: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Layers (counted from 1) of a model with windows that see all; None where config.json leaves it to the family."""
    kinds, every = text.get("layer_types"), text.get("sliding_window_pattern")
    if isinstance(kinds, list):
        return tuple(layer for layer, kind in enumerate(kinds, 1) if kind != "sliding_attention")
    if isinstance(every, int) and every > 0 and isinstance(layers := text.get("num_hidden_layers"), int):
        return tuple(range(every, layers + 1, every))
    return None


def rope_of(text: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(where config.json has it, type) of the rotary positions; several where kinds of layers differ (Gemma 3)."""
    field = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
    given = text.get(field)
    if not isinstance(given, Mapping):
        return ()
    per_kind = {f"{field}.{kind}": given[kind] for kind in _KINDS_OF_LAYERS if isinstance(given.get(kind), Mapping)}
    return tuple((name, _type_of(rope)) for name, rope in (per_kind or {field: given}).items())


def rope_limit(text: Mapping[str, Any]) -> int | None:
    """Tokens up to which the rotary frequencies do not depend on how long a batch is; None where they never do."""
    field = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
    given, longest = text.get(field), text.get("max_position_embeddings")
    kinds = {kind for _, kind in rope_of(text)}
    if "longrope" in kinds and isinstance(given, Mapping):
        places = (text, given)
        originals = [
            one["original_max_position_embeddings"] for one in places if "original_max_position_embeddings" in one
        ]
        return next((one for one in originals if isinstance(one, int)), longest)
    return longest if "dynamic" in kinds else None


def indexers_of(text: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the layers of DeepSeek's sparse attention (GLM-5): "full" with an indexer, "shared" with the choice of the
    layer before. () where a model has none.

    Args:
        text: the language part of config.json.
    """
    layers = text.get("num_hidden_layers")
    if not text.get("index_topk") or not text.get("kv_lora_rank") or not isinstance(layers, int):
        return ()
    if isinstance(kinds := text.get("indexer_types"), list):
        return tuple(kinds)
    every, first = int(text.get("index_topk_freq") or 1), int(text.get("index_skip_topk_offset", 2))
    return tuple("shared" if max(layer - first + 1, 0) % every else "full" for layer in range(layers))


def indexed_limit(text: Mapping[str, Any]) -> int | None:
    """Tokens up to which it makes no difference how an indexer turns its positions; None where it is as transformers
    does it."""
    return text.get("index_topk") if text.get("indexer_rope_interleave") and indexers_of(text) else None


def complete_rotary(hf_config: Any) -> None:
    """Of transformers' configuration of a MiniMax-M2: the part of a head that has positions. Published files name it by
    `rotary_dim`, which transformers 5.12.1 does not read, so that it computes another model."""
    size = getattr(hf_config, "rotary_dim", None)
    if hf_config.model_type == "minimax_m2" and size:
        hf_config.rope_parameters.setdefault("partial_rotary_factor", size / hf_config.head_dim)


def _type_of(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")

"""Parameters of a model from its config.json, term by term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymb.model.families import family_of_type
from raymb.model.sizes import Sizes


def parameter_count(shape: Sizes, config: Mapping[str, Any]) -> int:
    """Elements of all weights; a tied output layer counts once.

    Args:
        shape: the model's sizes.
        config: the language part of config.json, for biases and shared experts.
    """
    hidden = shape.hidden_size
    embedding = shape.vocab_size * hidden
    total = embedding * (1 if shape.tie_word_embeddings else 2) + hidden
    for layer in range(shape.num_layers):
        feed_forward = _experts(shape, config) if _is_sparse(shape, config, layer) else _dense_mlp(shape, config)
        total += _attention(shape, config) + feed_forward + 2 * hidden
    return total


def tower_parameters(tower: Mapping[str, Any], shape: Sizes) -> int:
    """Elements of a tower beside the language part, by Qwen2.5-VL's layers: exact for those, an estimate for
    others.

    Args:
        tower: config.json's part about it, such as vision_config.
        shape: of the language part.
    """
    hidden, inner = int(tower.get("hidden_size") or 0), int(tower.get("intermediate_size") or 0)
    patch, frames = int(tower.get("patch_size") or 14), int(tower.get("temporal_patch_size") or 2)
    merged = hidden * int(tower.get("spatial_merge_size") or 2) ** 2
    layer = 4 * hidden * (hidden + 1) + 3 * hidden * inner + 2 * inner + 3 * hidden
    layers = int(tower.get("depth") or tower.get("num_hidden_layers") or 0) * layer
    merger = hidden + merged * (merged + 1) + (merged + 1) * shape.hidden_size
    return int(tower.get("in_channels") or tower.get("in_chans") or 3) * frames * patch**2 * hidden + layers + merger


def sparse_layers(shape: Sizes, config: Mapping[str, Any]) -> int:
    """Layers with experts."""
    return sum(_is_sparse(shape, config, layer) for layer in range(shape.num_layers))


def shared_experts_size(shape: Sizes, config: Mapping[str, Any]) -> int:
    """Feed-forward size of what every token passes besides its experts; 0 where there is nothing."""
    # DeepSeek has several, as wide as a routed one each.
    several = int(config.get("n_shared_experts") or 0) * (shape.moe_intermediate_size or 0)
    return int(config.get("shared_expert_intermediate_size") or several)


def _attention(shape: Sizes, config: Mapping[str, Any]) -> int:
    if shape.attention == "mla":
        return _latent_attention(shape, config)
    hidden, query = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    qkv = query + 2 * shape.num_kv_heads * shape.head_dim
    total = hidden * qkv + query * hidden
    family = family_of_type(shape.model_type)
    if family.qkv_bias:
        total += qkv if config.get("qkv_bias", True) else 0
    elif config.get("attention_bias"):
        total += qkv + hidden
    if family.qk_norm:
        total += 2 * shape.head_dim
    return total


def _latent_attention(shape: Sizes, config: Mapping[str, Any]) -> int:
    """DeepSeek's multi-head latent attention."""
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    rope, value = int(config.get("qk_rope_head_dim") or 64), int(config.get("v_head_dim") or 128)
    plain = int(config.get("qk_nope_head_dim") or 128)
    latent, query_rank = int(config["kv_lora_rank"]), config.get("q_lora_rank")
    query = heads * (plain + rope)
    down = hidden * query_rank + query_rank if query_rank else 0  # with its norm
    up = (query_rank or hidden) * query
    keys_values = hidden * (latent + rope) + latent + latent * heads * (plain + value)
    return down + up + keys_values + heads * value * hidden


def _dense_mlp(shape: Sizes, config: Mapping[str, Any]) -> int:
    hidden, inner = shape.hidden_size, shape.intermediate_size
    gated = family_of_type(shape.model_type).gated
    bias = (2 * inner if gated else inner) + hidden if config.get("mlp_bias") else 0
    return (3 if gated else 2) * hidden * inner + bias


def _experts(shape: Sizes, config: Mapping[str, Any]) -> int:
    hidden, experts, inner = shape.hidden_size, shape.num_experts or 0, shape.moe_intermediate_size or 0
    gates = hidden * experts
    if config.get("shared_expert_intermediate_size"):  # Qwen2-MoE's shared expert has one, too
        gates += hidden
    return gates + 3 * hidden * (experts * inner + shared_experts_size(shape, config))


def _is_sparse(shape: Sizes, config: Mapping[str, Any], layer: int) -> bool:
    """Whether this layer (counted from 0) has experts instead of a dense feed-forward network."""
    if not shape.num_experts or layer in (config.get("mlp_only_layers") or ()):
        return False
    if layer < int(config.get("first_k_dense_replace") or 0):
        return False
    return (layer + 1) % int(config.get("decoder_sparse_step") or 1) == 0

"""Parameters of a model from its config.json, term by term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymb.model.families import family_of_type
from raymb.model.layers import MixerSizes, delta_rule_sizes, mamba_sizes, parts_of_layer
from raymb.model.positions import indexers_of
from raymb.model.sizes import Sizes


def parameter_count(shape: Sizes, config: Mapping[str, Any]) -> int:
    """Elements of all weights that are loaded; a tied output layer counts once.

    Args:
        shape: the model's sizes.
        config: the language part of config.json, for biases and shared experts.
    """
    hidden = shape.hidden_size
    embedding = shape.vocab_size * hidden
    total = embedding * (1 if shape.tie_word_embeddings else 2) + hidden
    total += _indexers(shape, config) + _of_gemma4(shape, config)
    return total + sum(_part(part, shape, config) for parts in layers_of(shape, config) for part in parts)


def prediction_parameters(shape: Sizes, config: Mapping[str, Any]) -> int:
    """Elements of the layers of multi-token prediction that config.json names, without copies of the model's embedding
    and output layer."""
    # Each has a projection of two hidden states, and three norms, besides; and attention, whatever the other layers
    # have.
    beside = 2 * shape.hidden_size * shape.hidden_size + 3 * shape.hidden_size
    _, forward = parts_of_layer(config, shape.num_layers, shape.num_experts)
    layer = beside + sum(_part(part, shape, config) for part in ("attention", forward))
    return int(config.get("num_nextn_predict_layers") or 0) * layer


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


def layers_of(shape: Sizes, config: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The parts of each layer."""
    return [parts_of_layer(config, layer, shape.num_experts) for layer in range(shape.num_layers)]


def shared_experts_size(shape: Sizes, config: Mapping[str, Any]) -> int:
    """Feed-forward size of what every token passes besides its experts; 0 where there is nothing."""
    # DeepSeek has several, as wide as a routed one each.
    names = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    several = max(int(config.get(name) or 0) for name in names) * (shape.moe_intermediate_size or 0)
    named = config.get("shared_expert_intermediate_size") or config.get("moe_shared_expert_intermediate_size")
    if config.get("enable_moe_block"):  # Gemma 4 has a dense layer beside its experts
        return shape.intermediate_size
    return int(named or several)


def expert_parameters(shape: Sizes) -> int:
    """Elements of one routed expert, without biases."""
    return _matrices(shape) * shape.hidden_size * (shape.moe_intermediate_size or 0)


def _matrices(shape: Sizes) -> int:
    """Of a feed-forward network."""
    return 3 if family_of_type(shape.model_type).gated else 2


def _part(part: str, shape: Sizes, config: Mapping[str, Any]) -> int:
    count = {
        "attention": _attention,
        "attention_and_mamba": _attention_and_mamba,
        "linear_attention": _linear_attention,
        "mamba": _mamba,
        "mlp": _dense_mlp,
        "experts": _experts,
    }[part]
    return count(shape, config) + shape.hidden_size


def _attention(shape: Sizes, config: Mapping[str, Any]) -> int:
    if shape.attention == "mla":
        return _latent_attention(shape, config)
    hidden, query = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    qkv = query + 2 * shape.num_kv_heads * shape.head_dim
    total = hidden * qkv + query * hidden
    family = family_of_type(shape.model_type)
    if family.gated_attention:
        total += hidden * query
    if family.qkv_bias:
        total += qkv if config.get("qkv_bias", True) else 0
    elif config.get("attention_bias"):
        total += qkv + hidden
    norms = {"": 0, "head": 2, "all heads": shape.num_attention_heads + shape.num_kv_heads}
    return total + norms[family.qk_norm] * shape.head_dim


def _latent_attention(shape: Sizes, config: Mapping[str, Any]) -> int:
    """DeepSeek's multi-head latent attention."""
    hidden, heads, value = shape.hidden_size, shape.num_attention_heads, shape.value_head_dim
    rope = latent_sizes(config)[1]
    latent, query_rank = int(config["kv_lora_rank"]), config.get("q_lora_rank")
    query = heads * shape.head_dim
    down = hidden * query_rank + query_rank if query_rank else 0  # with its norm
    up = (query_rank or hidden) * query
    keys_values = hidden * (latent + rope) + latent + latent * heads * (shape.head_dim - rope + value)
    return down + up + keys_values + heads * value * hidden


def _indexers(shape: Sizes, config: Mapping[str, Any]) -> int:
    """Of all layers: what chooses the tokens that DeepSeek's sparse attention looks at (GLM-5)."""
    heads, size = int(config.get("index_n_heads") or 0), int(config.get("index_head_dim") or 0)
    one = (shape.query_rank or 0) * heads * size + shape.hidden_size * (size + heads) + 2 * size
    return indexers_of(config).count("full") * one


def _of_gemma4(shape: Sizes, config: Mapping[str, Any]) -> int:
    """What Gemma 4 has besides, or less, in all layers: other heads where a layer has no window, layers that share keys
    and values, norms after a part, and embeddings of every layer."""
    if shape.model_type != "gemma4_text":
        return 0
    hidden, heads, same = shape.hidden_size, shape.num_attention_heads, bool(config.get("attention_k_eq_v"))
    wide = int(config.get("global_head_dim") or shape.head_dim)
    groups = int((same and config.get("num_global_key_value_heads")) or shape.num_kv_heads)
    own = shape.num_layers - int(config.get("num_kv_shared_layers") or 0)
    total = 0
    for layer, kind in enumerate(_kinds_of_gemma4(shape, config)):
        head, keys = (shape.head_dim, shape.num_kv_heads) if kind == "sliding_attention" else (wide, groups)
        matrices = 1 if kind != "sliding_attention" and same else 2  # of keys, of values
        attention = 2 * hidden * heads * head + head
        attention += hidden * keys * head * matrices + head if layer < own else 0
        total += attention + 2 * hidden - (_attention(shape, config))
        if layer >= own and config.get("use_double_wide_mlp"):
            total += 3 * hidden * shape.intermediate_size
        if shape.num_experts:
            total += 4 * hidden + shape.num_experts
    size = int(config.get("hidden_size_per_layer_input") or 0)
    table = int(config.get("vocab_size_per_layer_input") or shape.vocab_size) + hidden
    each = shape.num_layers * (table * size + 2 * hidden * size + hidden) + size
    return total + (each if size else 0)


def _kinds_of_gemma4(shape: Sizes, config: Mapping[str, Any]) -> list[str]:
    usual = ["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(shape.num_layers)]
    kinds = config.get("layer_types")
    return [*(kinds if isinstance(kinds, list) else usual)[:-1], "full_attention"]


def latent_sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(part without positions of a query's head, part with rotary positions, head of a value) of multi-head latent
    attention; a `head_dim` beside them means something else in every family."""
    names = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    plain, rope, value = (int(config.get(name) or usual) for name, usual in names.items())
    return plain, rope, value


def _linear_attention(shape: Sizes, config: Mapping[str, Any]) -> int:
    """The gated delta rule of Qwen3-Next and Qwen3.5: beside its matrices a fading and a step a head."""
    sizes = delta_rule_sizes(config)
    return _mixer(shape, sizes) + 2 * sizes.heads


def _mamba(shape: Sizes, config: Mapping[str, Any]) -> int:
    """A Mamba 2 layer, as Nemotron-H and Falcon-H1 have it: and what a head's input adds to its output."""
    sizes = mamba_sizes(config)
    has_bias = config.get("use_conv_bias", config.get("mamba_conv_bias", True))
    return _mixer(shape, sizes) + 3 * sizes.heads + (sizes.convolved if has_bias else 0)


def _mixer(shape: Sizes, sizes: MixerSizes) -> int:
    """Projections, convolution and norm of a layer with states."""
    return shape.hidden_size * (sizes.projected + sizes.inner) + sizes.convolved * sizes.width + sizes.norm


def _attention_and_mamba(shape: Sizes, config: Mapping[str, Any]) -> int:
    return _attention(shape, config) + _mamba(shape, config)


def _dense_mlp(shape: Sizes, config: Mapping[str, Any]) -> int:
    hidden, inner, matrices = shape.hidden_size, shape.intermediate_size, _matrices(shape)
    bias = (matrices - 1) * inner + hidden if config.get("mlp_bias") else 0
    return matrices * hidden * inner + bias


def _experts(shape: Sizes, config: Mapping[str, Any]) -> int:
    hidden, experts = shape.hidden_size, shape.num_experts or 0
    gates = hidden * experts
    if config.get("shared_expert_intermediate_size"):  # Qwen2-MoE's shared expert has one, too
        gates += hidden
    shared = _matrices(shape) * hidden * shared_experts_size(shape, config)
    return gates + experts * expert_parameters(shape) + shared

"""What a model's layers are made of, by its config.json: attention, states in its place, feed-forward parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ONE_PART = {
    "M": "mamba",
    "*": "attention",
    "-": "mlp",
    "E": "experts",
    "mamba": "mamba",
    "attention": "attention",
    "mlp": "mlp",
    "moe": "experts",
}
"""Letters of `hybrid_override_pattern`, words of `layers_block_type`: a layer has one part then, not two."""
WITH_ATTENTION = ("attention", "attention_and_mamba")
WITH_STATES = ("mamba", "attention_and_mamba", "linear_attention")


@dataclass(frozen=True)
class States:
    """Layers with a state a head: of a state space model (Mamba 2), or of linear attention (gated delta rule).

    heads are (name in config.json, how many) of what tensor and context parallel workers share, groups of what tensor
    parallel workers do; width is how many numbers the layer's projection makes of a token.
    """

    layers: int = 0
    heads: tuple[tuple[str, int], ...] = ()
    groups: tuple[str, int] | None = None
    width: int = 0


def pattern_of(config: Mapping[str, Any]) -> list[str] | None:
    """The one part of each layer of a model whose layers have one; None for other models."""
    pattern = config.get("layers_block_type") or config.get("hybrid_override_pattern")
    return [_ONE_PART.get(str(kind), "attention") for kind in pattern] if isinstance(pattern, str | list) else None


def parts_of_layer(config: Mapping[str, Any], layer: int, experts: int | None) -> tuple[str, ...]:
    """Of a layer counted from 0; each has a norm.

    Args:
        experts: of a layer that has some; None for a model without.
    """
    pattern = pattern_of(config)
    if pattern and layer < len(pattern):
        return (pattern[layer],)
    if config.get("mamba_d_ssm") is not None or config.get("mamba_d_head") is not None:  # Falcon-H1: side by side
        mixer = "attention_and_mamba"
    else:
        mixer = "linear_attention" if _is_linear(config, layer) else "attention"
    return mixer, "experts" if experts and _is_sparse(config, layer) else "mlp"


def states_of(config: Mapping[str, Any], layers: list[tuple[str, ...]]) -> States:
    """
    Args:
        layers: the parts of each.
    """
    kinds = {part for parts in layers for part in parts if part in WITH_STATES}
    count = sum(part in WITH_STATES for parts in layers for part in parts)
    if not kinds:
        return States()
    if "linear_attention" in kinds:
        sizes = delta_rule_sizes(config)
        names = ("linear_num_key_heads", "linear_num_value_heads")
        return States(count, tuple((name, int(config[name])) for name in names), None, sizes.projected)
    heads, groups = ("mamba_num_heads", "n_groups") if "mamba" in kinds else ("mamba_n_heads", "mamba_n_groups")
    width = mamba_sizes(config).projected
    return States(count, ((heads, int(config[heads])),), (groups, int(config[groups])), width)


@dataclass(frozen=True)
class MixerSizes:
    """Of a layer with states: its heads, what the heads' results make together, the channels of its convolution, its
    tokens' width, what its projection makes of a token, and how many numbers its norm has."""

    heads: int
    inner: int
    convolved: int
    width: int
    projected: int
    norm: int


def mamba_sizes(config: Mapping[str, Any]) -> MixerSizes:
    """By the names of Nemotron-H, or of Falcon-H1."""
    if "mamba_num_heads" in config:
        heads, channels = int(config["mamba_num_heads"]), int(config["mamba_head_dim"])
        states, width = int(config["n_groups"]) * int(config["ssm_state_size"]), int(config["conv_kernel"])
        norm = True
    else:
        heads, states = int(config["mamba_n_heads"]), int(config["mamba_n_groups"]) * int(config["mamba_d_state"])
        total = config.get("mamba_d_ssm") or int(config.get("mamba_expand") or 2) * int(config["hidden_size"])
        channels, width = int(total) // heads, int(config.get("mamba_d_conv") or 4)
        norm = bool(config.get("mamba_rms_norm"))
    inner = heads * channels
    convolved = inner + 2 * states
    return MixerSizes(heads, inner, convolved, width, inner + convolved + heads, inner if norm else 0)


def delta_rule_sizes(config: Mapping[str, Any]) -> MixerSizes:
    """Of Qwen3-Next and Qwen3.5."""
    heads, head = int(config["linear_num_value_heads"]), int(config["linear_value_head_dim"])
    keys, values = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"]), heads * head
    convolved = 2 * keys + values
    width = int(config["linear_conv_kernel_dim"])
    return MixerSizes(heads, values, convolved, width, convolved + values + 2 * heads, head)


def _is_linear(config: Mapping[str, Any], layer: int) -> bool:
    """Whether this layer has linear attention in place of softmax attention."""
    kinds, interval = config.get("layer_types"), config.get("full_attention_interval")
    if isinstance(kinds, list) and layer < len(kinds):
        return kinds[layer] == "linear_attention"
    return bool(interval) and bool(config.get("linear_num_value_heads")) and (layer + 1) % int(interval or 1) != 0


def _is_sparse(config: Mapping[str, Any], layer: int) -> bool:
    """Whether this layer has experts instead of a dense feed-forward network, in a model with experts."""
    if layer in (config.get("mlp_only_layers") or ()):
        return False
    kinds = config.get("mlp_layer_types")
    if isinstance(kinds, list) and layer < len(kinds):
        return kinds[layer] == "sparse"
    first = int(config.get("first_k_dense_replace") or config.get("moe_layer_start_index") or 0)
    last = int(config.get("moe_layer_end_index") or -1)
    if layer < first or -1 < last < layer:
        return False
    return (layer + 1) % int(config.get("decoder_sparse_step") or config.get("moe_layer_interval") or 1) == 0

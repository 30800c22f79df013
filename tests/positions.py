"""Tiny models whose windows and rotary scaling show in sequences of LENGTH tokens: every one that raymb computes."""

from __future__ import annotations

from typing import Any

from raymb.model.families import family_of
from tests.families import FAMILIES, architecture

LENGTH, SHORT = 96, 32
"""Tokens of a sequence, and those that the models of SCALINGS were made for."""
SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"factor": 4.0},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": SHORT,
    },
    "longrope": {"factor": 4.0, "original_max_position_embeddings": LENGTH},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": SHORT},
    "proportional": {"partial_rotary_factor": 0.25},
}
WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2, max_window_layers": ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "Qwen3, layer_types": (
        "Qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "Qwen3-MoE": ("Qwen3-MoE", {"use_sliding_window": True, "sliding_window": 16}),
    "Mistral": ("Mistral", {}),
    "Gemma 2": ("Gemma 2", {}),
    "Gemma 3": ("Gemma 3", {}),
    "GPT-OSS": ("GPT-OSS", {}),
    "GPT-OSS, layer_types": (
        "GPT-OSS",
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "EXAONE 4": ("EXAONE 4", {}),
    "EXAONE 4, no windows": ("EXAONE 4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "K-EXAONE": ("K-EXAONE", {}),
    "Gemma 4": ("Gemma 4", {}),
    "Gemma 4 MoE": ("Gemma 4 MoE", {}),
}
TWO_KINDS = ("Gemma 3", "Gemma 4", "Gemma 4 MoE")
"""Families whose layers with a window have other rotary positions."""
NUMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2, yarn with every number": (
        "Qwen2",
        {"attention_factor": 1.5, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    ),
    "Qwen2, yarn with mscale": ("Qwen2", {"mscale": 0.7, "mscale_all_dim": 0.3}),
    "DeepSeek-V2, yarn as published": ("DeepSeek-V2", {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0.707}),
    "DeepSeek-V3, yarn as published": ("DeepSeek-V3", {"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}),
    "GLM-4.7-Flash, yarn with mscale": ("GLM-4.7-Flash", {"mscale": 1.0, "mscale_all_dim": 1.0}),
}


def scaled(family: str, kind: str, **numbers: Any) -> dict[str, Any]:
    """Settings of config.json for a scaling."""
    partial = FAMILIES[family][1].get("partial_rotary_factor", 1.0)
    rope = {"rope_type": kind, "rope_theta": 10000.0, **SCALINGS[kind], **numbers}
    if partial != 1 and kind != "proportional":
        rope["partial_rotary_factor"] = partial
    if kind == "longrope":
        pairs = int(16 * partial) // 2
        rope |= {"short_factor": [1 + 0.1 * pair for pair in range(pairs)], "long_factor": [4.0] * pairs}
    if family in TWO_KINDS:
        local = {"rope_type": "default", "rope_theta": 10000.0}
        rope = {"full_attention": rope | {"rope_theta": 1e6}, "sliding_attention": local}
    longest = {"dynamic": LENGTH, "longrope": 4 * LENGTH, "yarn": int(SHORT * rope.get("factor", 1))}.get(kind, 512)
    return {"rope_parameters": rope, "max_position_embeddings": longest}


def computed() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name to (family, settings beside the family's)."""
    kinds = {
        f"{family}, {kind}": (family, scaled(family, kind))
        for family in FAMILIES
        for kind in family_of(architecture(family)).rope_types or ()
    }
    numbers = {name: (family, scaled(family, "yarn", **more)) for name, (family, more) in NUMBERS.items()}
    partial = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}
    return kinds | numbers | WINDOWS | {"Nemotron, a quarter": ("Nemotron", {"rope_parameters": partial})}


def table() -> list[str]:
    """The lines of docs/families.md."""
    lines = ["| family | rotary scaling (`rope_type`) | layers with `sliding_window` |", "|---|---|---|"]
    for family in FAMILIES:
        record = family_of(architecture(family))
        every = record.full_attention_every
        of_bridge = f"all but {every}, {2 * every}, ..." if every else "none"
        named = {
            "all": "all",
            "layer_types": "as `layer_types` says",
            "by Bridge": "as `layer_types` says; with experts they must repeat",
            "": of_bridge,
        }
        layers = named[record.window_layers]
        lines.append(f"| {family} | {', '.join(record.rope_types or ())} | {layers} |")
    return lines

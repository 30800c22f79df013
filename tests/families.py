"""Tiny models with random weights, one of each decoder family, by the family's own architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.hybrids import HYBRIDS

_COMMON: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # logits that differ, and a loss with something to learn
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_MLA = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_DEEPSEEK = {
    **_MLA,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}

_GEMMA4 = {
    "num_hidden_layers": 6,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 2,
    "sliding_window": 16,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 304,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "final_logit_softcapping": 30.0,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "Qwen3-MoE": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
    ),
    "Llama 3": ("Llama", {"rope_parameters": _LLAMA3_ROPE}),
    "Mistral": ("Mistral", {"sliding_window": 16, "head_dim": 16}),
    "OLMoE": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "Gemma 2": (
        "Gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "attn_implementation": "eager"},
    ),
    "Gemma 3": (  # its 6th layer has no window, and other rotary frequencies
        "Gemma3",
        {"num_hidden_layers": 6, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16},
    ),
    "DeepSeek-V2": ("DeepseekV2", {**_DEEPSEEK, "topk_method": "greedy", "norm_topk_prob": False}),
    "DeepSeek-V2-Lite": (
        "DeepseekV2",
        {**_DEEPSEEK, "q_lora_rank": None, "topk_method": "greedy", "norm_topk_prob": False},
    ),
    "DeepSeek-V3": ("DeepseekV3", {**_DEEPSEEK, "norm_topk_prob": True}),
    "GPT-OSS": (
        "GptOss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 64,
            "sliding_window": 16,
            "rope_parameters": _YARN,
        },
    ),
    "GLM-4.5": (
        "Glm4Moe",
        {
            "head_dim": 16,
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "partial_rotary_factor": 0.5,
            "num_nextn_predict_layers": 0,
        },
    ),
    "GLM-4.7-Flash": ("Glm4MoeLite", {**_DEEPSEEK, "num_nextn_predict_layers": 0}),
    "Nemotron": ("Nemotron", {"head_dim": 16, "partial_rotary_factor": 0.5}),
    "Gemma": ("Gemma", {"head_dim": 16}),
    "EXAONE 4": ("Exaone4", {"head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 4}),
    "ERNIE 4.5": (
        "Ernie4_5_Moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 32},
    ),
    "MiniMax-M2": (
        "MiniMaxM2",
        {
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
            "rotary_dim": 8,  # the same in published files, and what Bridge reads
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
        },
    ),
    "GLM-5": (
        "GlmMoeDsa",
        {
            **_DEEPSEEK,
            "n_routed_experts": 4,
            "index_topk": 8,
            "rms_norm_eps": 1e-6,  # as its latent attention has by default in transformers: no other tokens are chosen
            "index_head_dim": 32,
            "index_n_heads": 16,  # of fewer heads all may score 0 for several tokens: which are chosen then is chance
        },
    ),
    "Hy3": (
        "HYV3",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "K-EXAONE": (
        "ExaoneMoe",
        {
            "head_dim": 16,
            "sliding_window": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_shared_experts": 1,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "Gemma 4": (
        "Gemma4",
        {
            **_GEMMA4,
            "enable_moe_block": False,
        },
    ),
    "Gemma 4 MoE": (
        "Gemma4",
        {
            **_GEMMA4,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    **HYBRIDS,
}
"""Family to (prefix of its transformers classes, settings beside the common ones)."""


def architecture(family: str) -> str:
    """As config.json has it."""
    return f"{FAMILIES[family][0]}ForCausalLM"


MOE_FAMILIES = {name for name, (_, settings) in FAMILIES.items() if any("expert" in key for key in settings)}


def make_model(family: str, directory: Path, **more: Any) -> Path:
    """Save the family's tiny model, with a tokenizer. more: settings beside, or instead of, the family's."""
    import torch
    import transformers

    from tests.models import save_tokenizer

    prefix, settings = FAMILIES[family]
    implementation = settings.get("attn_implementation")
    given = {name: value for name, value in settings.items() if name != "attn_implementation"} | more
    # The text models of Gemma 3, Gemma 4 and Qwen3.5 have a configuration of their own beside the multimodal one.
    config_class = getattr(transformers, f"{prefix}TextConfig", None) or getattr(transformers, f"{prefix}Config")
    config = config_class(**{**_COMMON, **given})
    torch.manual_seed(0)
    model = getattr(transformers, architecture(family))._from_config(config, attn_implementation=implementation)
    model = model.float()
    with torch.no_grad():  # vectors start as 0 or 1, which would hide a norm, bias or sink in a wrong place
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():  # of ERNIE 4.5 the router
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, tensor in model.state_dict().items():  # of experts: a buffer, or a matrix of one row
            if name.endswith("e_score_correction_bias"):
                tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def add_prediction_layer(directory: Path) -> Path:
    """Give a model of make_model a layer of multi-token prediction, as the published DeepSeek-V3 and GLM-4.5 have it:
    model.layers.N after the last layer, which transformers does not load."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((directory / "config.json").read_text())
    tensors, layers = load_file(directory / "model.safetensors"), config["num_hidden_layers"]
    last, beyond = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    copied = {name.replace(last, beyond): tensor.clone() for name, tensor in tensors.items() if name.startswith(last)}
    hidden, norm, embedding = config["hidden_size"], tensors["model.norm.weight"], tensors["model.embed_tokens.weight"]
    own = {
        **{f"{name}.weight": norm.clone() for name in ("enorm", "hnorm", "shared_head.norm")},
        "eh_proj.weight": torch.randn(hidden, 2 * hidden),
        "embed_tokens.weight": embedding.clone(),
        "shared_head.head.weight": embedding.clone(),
    }
    tensors |= copied | {beyond + name: tensor for name, tensor in own.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    return directory

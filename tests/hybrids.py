"""Tiny models with random weights that have layers without attention: every kind of layer, several heads and groups."""

from __future__ import annotations

from typing import Any

_DELTA_RULE = {
    "head_dim": 16,
    "partial_rotary_factor": 0.5,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    # A sequence's first results are as small as a query and a key happen to be alike, and a norm makes them large: with
    # 1e-6, steps differ by 1e-4 between transformers' own two ways to compute them.
    "rms_norm_eps": 1e-3,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SHARED_EXPERT = {"shared_expert_intermediate_size": 48}

HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-Next": ("Qwen3Next", {**_DELTA_RULE, **_EXPERTS, **_SHARED_EXPERT, "norm_topk_prob": True}),
    "Nemotron-H": (
        "NemotronH",
        {
            "layers_block_type": ["mamba", "moe", "attention", "mlp"] * 2,
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "ssm_state_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 48,
            "routed_scaling_factor": 2.5,
            "layer_norm_epsilon": 1e-3,
            # transformers 5.12.1 keeps time steps above it without kernels for CUDA, and with them above 0. And without
            # them the states of a chunk are not those that the next one begins with: no sample is longer than a chunk.
            "time_step_min": 1e-6,
        },
    ),
    "Qwen3.5": ("Qwen3_5", _DELTA_RULE),
    "Qwen3.5-MoE": ("Qwen3_5Moe", {**_DELTA_RULE, **_EXPERTS, **_SHARED_EXPERT}),
    "Falcon-H1": (
        "FalconH1",
        {
            "head_dim": 16,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 2,
            "mamba_d_state": 16,
            "mamba_chunk_size": 32,
            "mamba_norm_before_gate": False,
            "attention_in_multiplier": 1.1,
            "attention_out_multiplier": 0.9,
            "embedding_multiplier": 1.5,
            "key_multiplier": 0.7,
            "lm_head_multiplier": 0.8,
            "mlp_multipliers": [1.2, 0.6],
            "ssm_in_multiplier": 1.3,
            "ssm_multipliers": [0.5, 1.1, 0.9, 1.2, 0.8],
            "ssm_out_multiplier": 0.7,
        },
    ),
}
"""Family to (prefix of its transformers classes, settings beside the common ones), as tests/families.py has them."""

NOTES = [
    "Layers with states (Qwen3-Next, Qwen3.5: the gated delta rule; Nemotron-H, Falcon-H1: Mamba 2) are made of CUDA",
    "kernels of the packages flash-linear-attention and tilelang, or mamba-ssm and causal-conv1d. GPU workers must",
    "have them: `raymb plan` names them, and a run stops before its workers start where they are absent. CPUs have",
    "stand-ins that compute the same in plain torch (`src/raymb/cpu/packages/`). Tensor and context parallel",
    "workers share the heads and groups of these layers, and their sizes must divide them; with Mamba 2 there are no",
    "virtual stages. States do not pass between packed samples; Falcon-H1 does not pack.",
    "",
    "Upstream defects of these that raymb steps around: megatron-core 0.19.2 `MambaMixer` gives the norm with a gate",
    "an epsilon of 1e-5; megatron-bridge 0.6.2 makes a layer of multi-token prediction of Nemotron-H whatever it is",
    "told, does not find its embeddings by the name that transformers saves them by, writes no checkpoint of Falcon-H1",
    "with tensor parallel, and makes adapters on queries too small where each head has a gate (Qwen3-Next, Qwen3.5).",
    "",
    "transformers 5.12.1 computes Nemotron-H otherwise where it has no CUDA kernels: states do not pass from one chunk",
    "(`chunk_size` tokens) to the next (`NemotronHMamba2Mixer.torch_forward`), and time steps are not shorter than",
    "`time_step_min`, which raymb takes out when it verifies, generates or scores. On a CPU, generate from prompts",
    "that are no longer than a chunk.",
]
"""Of docs/families.md."""

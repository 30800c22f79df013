"""Language models that have layers without attention: state space models, or linear attention."""

from __future__ import annotations

from raymb.model.families.record import SCALED, Family

# On Hopper flash-linear-attention 0.6.0 refuses Triton from 3.4.0 up to 3.7.0 (torch 2.11 has 3.6), but for TileLang.
_DELTA_RULE_KERNELS = {"fla": "flash-linear-attention", "tilelang": "tilelang"}
_MAMBA_KERNELS = {"mamba_ssm": "mamba-ssm", "causal_conv1d": "causal-conv1d"}
_NO_VIRTUAL = {"virtual_pipeline_parallel_size": "Bridge 0.6.2 cuts no hybrid model so (hybrid_provider.py)"}
_OFF = (False, None)
_QWEN = {"attention_bias": _OFF, "hidden_act": ("silu",)}
_QWEN_EXPERTS = {"mlp_only_layers": ([], None), "decoder_sparse_step": (1,), "norm_topk_prob": (True,)}
_INFINITE = {"__float__": "Infinity"}  # as transformers 5 writes it
_MAMBA: dict[str, tuple[object, ...]] = {
    "time_step_limit": ([0.0, float("inf")], [0.0, _INFINITE], None),
    **dict.fromkeys(("attention_bias", "mamba_proj_bias", "mlp_bias", "projectors_bias", "use_bias"), _OFF),
}

FAMILIES = (
    Family(
        "Qwen3-Next",
        ("Qwen3NextForCausalLM",),
        ("qwen3_next",),
        rope_types=SCALED,
        rotary="Qwen3NextRotaryEmbedding",
        qk_norm="head",
        gated_attention=True,
        exact_count=True,
        tied_by_default=False,
        kernels=_DELTA_RULE_KERNELS,
        settings=_QWEN | _QWEN_EXPERTS,
        experts=True,
        proven="CPU",
    ),
    Family(
        "Nemotron-H",
        ("NemotronHForCausalLM",),
        ("nemotron_h",),
        rope_types=(),
        gated=False,
        exact_count=True,
        tied_by_default=False,
        kernels=_MAMBA_KERNELS,
        settings=_MAMBA
        | {
            "conv_kernel": (4,),
            "mamba_hidden_act": ("silu",),
            "mlp_hidden_act": ("relu2",),
            "use_conv_bias": (True,),
        },
        settings_with_experts={"moe_latent_size": (None,), "norm_topk_prob": (True,)},
        must_be_one=_NO_VIRTUAL,
        experts=True,
        proven="CPU",
    ),
    Family(
        "Qwen3.5",
        ("Qwen3_5ForCausalLM",),
        ("qwen3_5_text",),
        rope_types=SCALED,
        rotary="Qwen3_5TextRotaryEmbedding",
        qk_norm="head",
        gated_attention=True,
        exact_count=True,
        tied_by_default=False,
        kernels=_DELTA_RULE_KERNELS,
        settings=_QWEN,
        proven="CPU",
    ),
    Family(
        "Qwen3.5-MoE",
        ("Qwen3_5MoeForCausalLM",),
        ("qwen3_5_moe_text",),
        rope_types=SCALED,
        rotary="Qwen3_5MoeTextRotaryEmbedding",
        qk_norm="head",
        gated_attention=True,
        exact_count=True,
        tied_by_default=False,
        kernels=_DELTA_RULE_KERNELS,
        settings=_QWEN | _QWEN_EXPERTS,
        experts=True,
        proven="CPU",
    ),
    Family(
        "Falcon-H1",
        ("FalconH1ForCausalLM",),
        ("falcon_h1",),
        rope_types=SCALED,
        rotary="FalconH1RotaryEmbedding",
        exact_count=True,
        tied_by_default=False,
        kernels=_MAMBA_KERNELS,
        settings=_MAMBA
        | {
            "hidden_act": ("silu",),
            "mamba_conv_bias": (True,),
            "mamba_d_conv": (4,),
            "mamba_norm_before_gate": (False,),
        },
        must_be_one=_NO_VIRTUAL,
        no_packing="Bridge 0.6.2 does not hand its layers where a row's samples begin (falconh1_model.py)",
        proven="CPU",
    ),
)

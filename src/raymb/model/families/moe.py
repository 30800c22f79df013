"""Language models with experts (MoE)."""

from __future__ import annotations

from raymb.model.families.record import SCALED, SCALED_LATENT, Family

FAMILIES = (
    Family(
        "Qwen3-MoE",
        ("Qwen3MoeForCausalLM",),
        ("qwen3_moe",),
        rope_types=SCALED,
        rotary="Qwen3MoeRotaryEmbedding",
        window_layers="all",
        qk_norm=True,
        exact_count=True,
        tied_by_default=False,
        peft_loads_experts=True,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "OLMoE",
        ("OlmoeForCausalLM",),
        ("olmoe",),
        rope_types=SCALED,
        rotary="OlmoeRotaryEmbedding",
        tied_by_default=False,
        peft_loads_experts=True,
        must_be_one={
            "tensor_parallel_size": "Bridge 0.6.2 norms its queries and keys over all heads (olmoe_provider.py)"
        },
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "DeepSeek-V2",
        ("DeepseekV2ForCausalLM",),
        ("deepseek_v2",),
        rope_types=SCALED_LATENT,
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "DeepSeek-V3",
        ("DeepseekV3ForCausalLM",),
        ("deepseek_v3",),
        rope_types=SCALED_LATENT,
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "GPT-OSS",
        ("GptOssForCausalLM",),
        ("gpt_oss",),
        rope_types=SCALED,
        rotary="GptOssRotaryEmbedding",
        window_layers="layer_types",
        # transformers 5.12.1 does not tie by default. It writes the setting into every config.json, so that this
        # matters only for one written by hand; raymb has taken such a model for tied so far.
        tied_by_default=True,
        must_be_one={"expert_tensor_parallel_size": "its experts have biases, which Megatron-Core 0.19 does not split"},
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "GLM-4.5",
        ("Glm4MoeForCausalLM",),
        ("glm4_moe",),
        rope_types=SCALED,
        rotary="Glm4MoeRotaryEmbedding",
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "GLM-4.7-Flash",
        ("Glm4MoeLiteForCausalLM",),
        ("glm4_moe_lite",),
        rope_types=SCALED_LATENT,
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
)

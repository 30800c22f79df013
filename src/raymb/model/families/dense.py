"""Language models whose layers all have attention and one feed-forward part."""

from __future__ import annotations

from raymb.model.families.record import SCALED, Family

_OWN_ATTENTION = "Bridge 0.6.2 has an attention of its own for it (gemma2_provider.py)"

FAMILIES = (
    Family(
        "Qwen2",
        ("Qwen2ForCausalLM",),
        ("qwen2",),
        rope_types=SCALED,
        rotary="Qwen2RotaryEmbedding",
        window_layers="layer_types",
        qkv_bias=True,
        exact_count=True,
        tied_by_default=False,
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Qwen3",
        ("Qwen3ForCausalLM",),
        ("qwen3",),
        rope_types=SCALED,
        rotary="Qwen3RotaryEmbedding",
        window_layers="layer_types",
        qk_norm=True,
        exact_count=True,
        tied_by_default=False,
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Llama",
        ("LlamaForCausalLM",),
        ("llama",),
        rope_types=SCALED,
        rotary="LlamaRotaryEmbedding",
        exact_count=True,
        tied_by_default=False,
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Mistral",
        ("MistralForCausalLM",),
        ("mistral",),
        rope_types=("dynamic", "linear", "llama3", "longrope"),  # Bridge 0.6.2 fails with yarn (mistral_bridge.py)
        rotary="MistralRotaryEmbedding",
        window_layers="all",
        exact_count=True,
        tied_by_default=False,
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Gemma 2",
        ("Gemma2ForCausalLM",),
        ("gemma2",),
        rope_types=SCALED,
        rotary="Gemma2RotaryEmbedding",
        full_attention_every=2,
        must_be_one={"context_parallel_size": _OWN_ATTENTION},
        no_packing=_OWN_ATTENTION,
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Gemma 3",
        ("Gemma3ForCausalLM",),
        ("gemma3_text",),
        rope_types=("linear",),
        full_attention_every=6,
        proven="CPU, GPU",
    ),
    Family(
        "Nemotron",
        ("NemotronForCausalLM",),
        ("nemotron",),
        rope_types=SCALED,
        rotary="NemotronRotaryEmbedding",
        gated=False,
        tied_by_default=True,  # transformers does not tie by default: see GPT-OSS
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family("MiMo", ("MiMoForCausalLM",), ("mimo",), qkv_bias=True, tied_by_default=False),
)

"""What raymb knows of each family of models that its config.json does not say: one record a family, read by the plan,
the bridge, the export, the data and the tests. No framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class VisionLanguage:
    """What a vision-language model has besides what a language model has."""

    step: str
    """Bridge's forward step."""
    mark: str
    """A text: the chat template writes it where an image is, and it is the token of each piece of the image."""
    image_processor: tuple[str, str]
    """Module and class of transformers that cuts an image into patches, on Pillow alone."""
    recipes: str
    """Name of the module that holds Bridge's recipes for it."""
    provider: tuple[str, str]
    """Module and class of Bridge's provider, whose fields an override may set and no annotation names."""
    language: tuple[str, str]
    """Beginning of the language part's names in files, and of its modules' names in transformers' model."""


@dataclass(frozen=True)
class Family:
    """A family of models; the defaults are what holds for one that raymb does not know."""

    name: str
    """For people, as its makers write it."""
    architectures: tuple[str, ...] = ()
    """`architectures[0]` of its config.json files."""
    model_types: tuple[str, ...] = ()
    """`model_type` of the language part of its config.json files."""
    gated: bool = True
    """Whether a dense feed-forward layer has a gate beside its up projection. Decides how many parameters and
    activations the layer has, and which of its projections an adapter can lie on."""
    qkv_bias: bool = False
    """Whether queries, keys and values have biases (unless config.json says `qkv_bias: false`). In other families
    config.json's `attention_bias` decides, and the output projection has one, too."""
    gated_attention: bool = False
    """Whether the query's projection makes a gate for the attention's output, too."""
    qk_norm: bool = False
    """Whether the parameter count has two norms, as wide as a head, for the queries and keys of every layer."""
    exact_count: bool = False
    """Whether the parameter count equals the number of elements that transformers makes; otherwise an estimate."""
    tied_by_default: bool = True
    """Whether the output layer is the embedding where config.json has no `tie_word_embeddings`."""
    peft_loads_experts: bool = False
    """Whether PEFT loads adapters of a MoE model's experts as they were trained (docs/adapters.md)."""
    must_be_one: Mapping[str, str] = field(default_factory=dict)
    """Flags of parallel sizes that must be 1, each with why."""
    rope_types: tuple[str, ...] | None = None
    """Scalings of rotary positions (`rope_type`) that are computed as by transformers, beside the default. None where
    nobody has compared."""
    rotary: str = ""
    """transformers' class whose frequencies Megatron is given; "" leaves them to Bridge."""
    window_layers: Literal["", "all", "layer_types"] = ""
    """Which layers of a model with a sliding window have it, for Megatron; "" leaves that to Bridge."""
    full_attention_every: int = 0
    """Bridge's constant of a model with windows: every so manyth layer sees all. 0 where it has none."""
    no_window: str = ""
    """Why its windows are not computed; "" where they are, or there are none."""
    no_packing: str = ""
    """Why its rows cannot be packed; "" where they can."""
    cuda_graphs: bool = False
    """Whether its steps with CUDA graphs were compared with steps without (docs/performance.md)."""
    experts: bool = False
    """Whether its models are MoE models."""
    proven: str = ""
    """Where tiny models of it were trained against others' losses (docs/families.md, docs/performance.md)."""
    vision: VisionLanguage | None = None
    """What a vision-language model that raymb trains has; None for a language model."""


_OWN_ATTENTION = "Bridge 0.6.2 has an attention of its own for it (gemma2_provider.py)"

_SCALED = ("dynamic", "linear", "llama3", "longrope", "yarn")
"""Scalings whose frequencies transformers hands out: of dynamic and longrope up to the length where they change."""
_SCALED_LATENT = ("dynamic", "yarn")
"""Of multi-head latent attention, which has its own in Megatron-Core 0.19.2."""

FAMILIES = (
    Family(
        "Qwen2",
        ("Qwen2ForCausalLM",),
        ("qwen2",),
        rope_types=_SCALED,
        rotary="Qwen2RotaryEmbedding",
        window_layers="layer_types",
        qkv_bias=True,
        exact_count=True,
        tied_by_default=False,
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Qwen2.5-VL",
        ("Qwen2_5_VLForConditionalGeneration",),
        ("qwen2_5_vl", "qwen2_5_vl_text"),
        rope_types=(),
        no_window="Bridge 0.6.2 does not hand the window on (qwen25_vl_bridge.py)",
        qkv_bias=True,
        exact_count=True,
        tied_by_default=False,
        must_be_one={
            "context_parallel_size": "Bridge 0.6.2 does not cut its images along the sequence (modeling_qwen25_vl.py)"
        },
        vision=VisionLanguage(
            step="vlm_step",
            mark="<|image_pad|>",
            image_processor=("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
            recipes="qwen25_vl",
            provider=("megatron.bridge.models.qwen_vl.qwen25_vl_provider", "Qwen25VLModelProvider"),
            language=("model.layers.", "model.language_model.layers."),
        ),
        proven="CPU, GPU",
    ),
    Family(
        "Qwen3",
        ("Qwen3ForCausalLM",),
        ("qwen3",),
        rope_types=_SCALED,
        rotary="Qwen3RotaryEmbedding",
        window_layers="layer_types",
        qk_norm=True,
        exact_count=True,
        tied_by_default=False,
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Qwen3-MoE",
        ("Qwen3MoeForCausalLM",),
        ("qwen3_moe",),
        rope_types=_SCALED,
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
        "Llama",
        ("LlamaForCausalLM",),
        ("llama",),
        rope_types=_SCALED,
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
        "OLMoE",
        ("OlmoeForCausalLM",),
        ("olmoe",),
        rope_types=_SCALED,
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
        "Gemma 2",
        ("Gemma2ForCausalLM",),
        ("gemma2",),
        rope_types=_SCALED,
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
        proven="CPU",
    ),
    Family(
        "DeepSeek-V2",
        ("DeepseekV2ForCausalLM",),
        ("deepseek_v2",),
        rope_types=_SCALED_LATENT,
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "DeepSeek-V3",
        ("DeepseekV3ForCausalLM",),
        ("deepseek_v3",),
        rope_types=_SCALED_LATENT,
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "GPT-OSS",
        ("GptOssForCausalLM",),
        ("gpt_oss",),
        rope_types=_SCALED,
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
        rope_types=_SCALED,
        rotary="Glm4MoeRotaryEmbedding",
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "GLM-4.7-Flash",
        ("Glm4MoeLiteForCausalLM",),
        ("glm4_moe_lite",),
        rope_types=_SCALED_LATENT,
        tied_by_default=False,
        experts=True,
        proven="CPU, GPU",
    ),
    Family(
        "Nemotron",
        ("NemotronForCausalLM",),
        ("nemotron",),
        rope_types=_SCALED,
        rotary="NemotronRotaryEmbedding",
        gated=False,
        tied_by_default=True,  # transformers does not tie by default: see GPT-OSS
        cuda_graphs=True,
        proven="CPU, GPU",
    ),
    Family(
        "Qwen3-Next",
        ("Qwen3NextForCausalLM",),
        ("qwen3_next",),
        qk_norm=True,
        gated_attention=True,
        tied_by_default=False,
        experts=True,
    ),
    Family("MiMo", ("MiMoForCausalLM",), ("mimo",), qkv_bias=True, tied_by_default=False),
    Family("Nemotron-H", ("NemotronHForCausalLM",), ("nemotron_h",), gated=False, tied_by_default=False, experts=True),
)
"""All families with a record."""

OTHER = Family("other")
"""A family without a record. Bridge 0.6.2 loads some that transformers 5.12.1 makes otherwise: nemotron_h has no gate,
and nemotron_h, exaone4, exaone_moe, falcon_h1, minimax_m2 and hy_v3 do not tie by default."""
OTHER_UNTIED = Family("other", tied_by_default=False)
"""A family without a record whose makers do not tie by default."""
_MAKERS_WITHOUT_TYING = (
    "llama",
    "mistral",
    "mixtral",
    "qwen",
    "deepseek",
    "phi",
    "olmo",
    "gpt_neox",
    "stablelm",
    "glm",
)
"""Beginnings of model types."""

_BY_ARCHITECTURE = {architecture: family for family in FAMILIES for architecture in family.architectures}
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_of(architecture: str) -> Family:
    """By `architectures[0]` of config.json: what Bridge and transformers choose a model's class by."""
    return _BY_ARCHITECTURE.get(architecture, OTHER)


def family_of_type(model_type: str) -> Family:
    """By the `model_type` of config.json's language part, which may be another family's than the whole model's."""
    other = OTHER_UNTIED if model_type.startswith(_MAKERS_WITHOUT_TYING) else OTHER
    return _BY_TYPE.get(model_type, other)

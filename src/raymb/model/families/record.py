"""What a record of a family of models says."""

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
    qk_norm: Literal["", "head", "all heads"] = ""
    """How wide the norms are that the queries and the keys of every layer have, in the parameter count."""
    exact_count: bool = False
    """Whether the parameter count equals the number of elements that transformers makes; otherwise an estimate."""
    tied_by_default: bool = True
    """Whether the output layer is the embedding where config.json has no `tie_word_embeddings`."""
    peft_loads_experts: bool = False
    """Whether PEFT loads adapters of a MoE model's experts as they were trained (docs/adapters.md)."""
    kernels: Mapping[str, str] = field(default_factory=dict)
    """Packages with CUDA kernels without which Megatron-Core makes no layer of the family: the name that is imported
    to the name that is installed. CPU workers have stand-ins (cpu/packages)."""
    must_be_one: Mapping[str, str] = field(default_factory=dict)
    """Flags of parallel sizes that must be 1, each with why."""
    settings: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """Settings of config.json that make another model than Bridge's, each with the values that do not."""
    settings_with_experts: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    """The same where a model of the family has experts."""
    only_with_experts: Mapping[str, str] = field(default_factory=dict)
    """Flags of parallel sizes that must be 1 where a model of the family has no experts, each with why."""
    rope_types: tuple[str, ...] | None = None
    """Scalings of rotary positions (`rope_type`) that are computed as by transformers, beside the default. None where
    nobody has compared."""
    rotary: str = ""
    """transformers' class whose frequencies Megatron is given; "" leaves them to Bridge."""
    window_layers: Literal["", "all", "layer_types", "by Bridge"] = ""
    """Which layers of a model with a sliding window have it, for Megatron; "" leaves that to Bridge. By Bridge: it
    reads layer_types, of which it takes those of a MoE model to repeat."""
    rotary_only_with_window: bool = False
    """Whether in a model with windows the layers without one have no positions either."""
    full_attention_every: int = 0
    """Bridge's constant of a model with windows: every so manyth layer sees all. 0 where it has none."""
    no_window: str = ""
    """Why its windows are not computed; "" where they are, or there are none."""
    not_trained: str = ""
    """Why raymb refuses it, although Bridge loads it; "" where it does not."""
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


SCALED = ("dynamic", "linear", "llama3", "longrope", "yarn")
"""Scalings whose frequencies transformers hands out: of dynamic and longrope up to the length where they change."""
SCALED_LATENT = ("dynamic", "yarn")
"""Of multi-head latent attention, which has its own in Megatron-Core 0.19.2."""

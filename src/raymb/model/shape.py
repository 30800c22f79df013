"""What a model's config.json says, and whether the model's files are there. No torch, no transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raymb.errors import ModelError
from raymb.model.directory import Needs
from raymb.model.families import family_of, family_of_type
from raymb.model.files import ModelFiles
from raymb.model.layers import WITH_ATTENTION, States, pattern_of, states_of
from raymb.model.parameters import (
    latent_sizes,
    layers_of,
    parameter_count,
    prediction_parameters,
    shared_experts_size,
    tower_parameters,
)
from raymb.model.positions import (
    indexed_limit,
    indexers_of,
    layers_without_window,
    rope_limit,
    rope_of,
    window_of,
)
from raymb.model.sizes import Sizes
from raymb.model.tensor_files import tensor_shapes

UNNAMED = "unknown"
"""Architecture of a config.json that names none."""


@dataclass(frozen=True)
class ModelShape(Sizes):
    """A model's sizes, and what follows from them.

    parameter_count is exact where parameter_count_is_exact, an estimate otherwise.
    needs_remote_code: the repository brings Python code that this transformers release does not have itself.
    """

    sparse_layers: int = 0
    """Layers with experts."""
    dense_layers: int = 0
    """Layers with a dense feed-forward network."""
    attention_layers: int = 0
    """Layers with softmax attention."""
    states: States = field(default_factory=States)
    """Layers with states."""
    norms: int = 0
    """Norms before the parts of all layers."""
    prediction_parameters: int = 0
    """How many parameters config.json's layers of multi-token prediction have, which are not loaded."""
    shared_experts_size: int = 0
    """Feed-forward size of the experts that every token passes."""
    parameter_count: int = 0
    parameter_count_is_exact: bool = False
    tower: str = ""
    """The part beside the language model, as config.json calls it (vision_config, audio_config, ...); "" for none."""
    tower_parameters: int = 0
    """How many of the parameters are the tower's."""
    quantization: str = ""
    """How the files' weights are quantized; "" where they are not."""
    other_settings: tuple[str, ...] = ()
    """Those of config.json with which the model is another one than Bridge's, with their values."""
    window: int | None = None
    """Tokens that a layer with a sliding window looks at; None where no layer has one."""
    layers_without_window: tuple[int, ...] | None = None
    """Counted from 1; None where config.json leaves it to the family."""
    rope: tuple[tuple[str, str], ...] = ()
    """(where config.json has it, type) of the rotary positions."""
    rope_limit: int | None = None
    """Tokens up to which the rotary frequencies do not depend on how long a batch is; None where they never do."""
    indexers: tuple[str, ...] = ()
    """Of each layer of sparse attention: "full" or "shared"."""
    indexed_limit: int | None = None
    """Tokens up to which transformers computes the indexers of sparse attention; None where it always does."""
    has_chat_template: bool = False
    needs_remote_code: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> ModelShape:
        """Read the shape from the parsed config.json.

        Args:
            config: the whole file; the language part of a multimodal model is found in `text_config`.
            source: name used in errors.

        Raises:
            ModelError: a size that every language model has is missing or not a positive integer.
        """
        text = language_part(config)
        read = _Reader(text, source)
        pattern = pattern_of(text)
        layers = len(pattern or ()) or read.needed("num_hidden_layers", "n_layer", "num_layers", "n_layers")
        hidden = read.needed("hidden_size", "n_embd", "d_model", "dim")
        heads = read.needed("num_attention_heads", "n_head", "n_heads", "num_heads")
        vocab = read.needed("vocab_size", "padded_vocab_size")
        if read.problems:
            raise ModelError(
                f"{source}: " + "; ".join(read.problems),
                "--hf_model_path must name a decoder-only language model with a standard Hugging Face config.json",
            )
        kv_heads, attention = _attention(text, read, heads)
        plain, rope, value = latent_sizes(text) if attention == "mla" else (0, 0, 0)
        intermediate = read.first("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner") or 4 * hidden
        # First: beside it, transformers 5.12.1 writes a num_experts of 256 for every GLM-5.
        experts = read.first("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
        if text.get("enable_moe_block") is False:  # Gemma 4
            experts = None
        if pattern and "experts" not in pattern:  # transformers writes a number into every Nemotron-H's config.json
            experts = None
        architectures = config.get("architectures") or text.get("architectures") or [UNNAMED]
        tower = next((name for name in _TOWERS if isinstance(config.get(name), Mapping)), "")
        places = (config, text) if tower else (text, config)  # a model with a tower has it outside its language part
        tied = next((one["tie_word_embeddings"] for one in places if "tie_word_embeddings" in one), None)
        if tied is None:
            tied = family_of_type(str(text.get("model_type"))).tied_by_default
        shape = cls(
            architecture=str(architectures[0]),
            model_type=str(text.get("model_type") or config.get("model_type") or "unknown"),
            num_layers=layers,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_attention_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=plain + rope or read.first("head_dim", "kv_channels") or hidden // heads,
            value_head_dim=value,
            vocab_size=vocab,
            max_position_embeddings=_max_positions(text, read),
            tie_word_embeddings=bool(tied),
            attention=attention,
            query_rank=read.first("q_lora_rank") if attention == "mla" else None,
            num_experts=experts if experts and experts > 1 else None,
            experts_per_token=_experts_per_token(read) if experts and experts > 1 else None,
            moe_intermediate_size=_moe_size(read, experts, intermediate),
            needs_remote_code="auto_map" in config,
            tower=tower,
            quantization=_quantization(config, text),
            window=window_of(text),
            layers_without_window=layers_without_window(text),
            rope=rope_of(text),
            rope_limit=rope_limit(text),
            indexers=indexers_of(text),
            indexed_limit=indexed_limit(text),
            other_settings=_other_settings(text, str(architectures[0]), bool(experts and experts > 1)),
        )
        beside = tower_parameters(config[tower], shape) if tower else 0
        parts = layers_of(shape, text)
        return replace(
            shape,
            tower_parameters=beside,
            sparse_layers=sum("experts" in one for one in parts),
            dense_layers=sum("mlp" in one for one in parts),
            attention_layers=sum(part in WITH_ATTENTION for one in parts for part in one),
            states=states_of(text, parts),
            norms=sum(map(len, parts)),
            shared_experts_size=shared_experts_size(shape, text) if shape.num_experts else 0,
            parameter_count=parameter_count(shape, text) + beside,
            prediction_parameters=prediction_parameters(shape, text),
            parameter_count_is_exact=family_of_type(shape.model_type).exact_count,
        )


def read_model_shape(hf_model_path: str, revision: str | None = None, needs: Needs = "weights") -> ModelShape:
    """The shape of a local model directory or of a hub model (its small files are fetched, never its weights).

    Args:
        hf_model_path: a directory, or a hub id such as Qwen/Qwen2.5-0.5B.
        revision: branch, tag or commit of a hub model; a local directory has none.
        needs: what a directory must have.

    Raises:
        ModelError: not found, gated, out of reach, incomplete, or not a language model.
    """
    files = ModelFiles(hf_model_path, revision, needs)
    source = f"--hf_model_path {hf_model_path}: config.json"
    shape = ModelShape.from_config(_parse_json(files.needed("config.json"), source), source)
    if needs == "weights" and files.directory is not None:
        _check_tensors(shape, files.directory)
    needs_code = shape.needs_remote_code and not _known_to_transformers(shape.model_type)
    return replace(shape, has_chat_template=_has_chat_template(files), needs_remote_code=needs_code)


_EMBEDDING = re.compile(r"(model\.|language_model\.|transformer\.)*(embed_tokens|wte)\.weight")
_LAYER = re.compile(r"(?:model\.|language_model\.|transformer\.)*(?:layers|h)\.(\d+)\.")


def _check_tensors(shape: ModelShape, directory: Path) -> None:
    """Embedding and layers must be those of config.json, as far as they have their usual names."""
    tensors = tensor_shapes(directory)
    expected = [shape.vocab_size, shape.hidden_size]
    for name, found in tensors.items():
        if _EMBEDDING.fullmatch(name) and found != expected:
            raise ModelError(
                f"--hf_model_path {directory}: config.json has vocab_size {expected[0]} and hidden_size {expected[1]}, "
                f"and {name} in the weights is {' x '.join(map(str, found))}",
                "config.json and the weights are of two models: fetch the whole model again",
            )
    layers = max((int(found[1]) + 1 for name in tensors if (found := _LAYER.match(name))), default=None)
    if layers is not None and layers < shape.num_layers:
        raise ModelError(
            f"--hf_model_path {directory}: config.json has {shape.num_layers} layers, and the weights {layers}",
            "config.json and the weights are of two models: fetch the whole model again",
        )


class _Reader:
    """Positive integers under whichever of several names a family uses; mistakes are collected."""

    def __init__(self, config: Mapping[str, Any], source: str):
        self.config, self.source, self.problems = config, source, []

    def first(self, *names: str) -> int | None:
        for name in names:
            value = self.config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None

    def needed(self, *names: str) -> int:
        value = self.first(*names)
        if value is None:
            given = [f"{name} is {self.config[name]!r}" for name in names if name in self.config]
            self.problems.append(f"{given[0]}, a positive integer is expected" if given else f"no {names[0]}")
        return value or 0


_TOWERS = ("vision_config", "vit_config", "audio_config", "sound_config")


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json, or of a model with a tower the part of it that has the language model's sizes."""
    for name in ("text_config", "language_config", "llm_config", "thinker_config"):
        nested = config.get(name)
        if isinstance(nested, Mapping):
            return language_part(nested)
    return config


def _attention(text: Mapping[str, Any], read: _Reader, heads: int) -> tuple[int, str]:
    """(key/value groups, kind of attention)."""
    if text.get("kv_lora_rank"):
        return read.first("num_key_value_heads") or heads, "mla"
    groups = read.first("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "num_query_groups")
    old_falcon = text.get("multi_query") and not text.get("new_decoder_architecture")
    if old_falcon and "multi_query_group_num" not in text:
        groups = 1
    if groups is None or groups == heads:
        return heads, "mha"
    return groups, "mqa" if groups == 1 else "gqa"


def _other_settings(text: Mapping[str, Any], architecture: str, has_experts: bool) -> tuple[str, ...]:
    family = family_of(architecture)
    usable = {**family.settings, **(family.settings_with_experts if has_experts else {})}
    given = {name: text[name] for name in usable if name in text}
    found = [f"{name} {value!r}" for name, value in given.items() if value not in usable[name]]
    by_rule = indexers_of({name: value for name, value in text.items() if name != "indexer_types"})
    if indexers_of(text) != by_rule:  # Bridge reads index_topk_freq and index_skip_topk_offset alone
        found.append(f"indexer_types {text['indexer_types']!r}")
    return tuple(found)


def _quantization(*configs: Mapping[str, Any]) -> str:
    """By the first of these parts of config.json that says so."""
    found = [config.get("quantization_config") or config.get("compression_config") for config in configs]
    first = next((one for one in found if isinstance(one, Mapping)), None)
    return "" if first is None else str(first.get("quant_method") or first.get("quant_algo") or "a method of its own")


def _moe_size(read: _Reader, experts: int | None, intermediate: int) -> int | None:
    if not experts or experts <= 1:
        return None
    return read.first("moe_intermediate_size", "expert_ffn_hidden_size") or intermediate


def _experts_per_token(read: _Reader) -> int | None:
    return read.first("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")


def _max_positions(text: Mapping[str, Any], read: _Reader) -> int | None:
    """The longest sequence in tokens, with rope scaling counted in; None if the config sets no limit."""
    limit = read.first("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_seq_length")
    if limit is None or text.get("alibi"):
        return None
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    # Gemma 3 and later keep one mapping a kind of layer; the most stretched one sets the limit.
    per_kind = [item for item in scaling.values() if isinstance(item, Mapping)] or [scaling]
    return max([limit, *(_stretched(item, limit) for item in per_kind)])


def _stretched(scaling: Mapping[str, Any], limit: int) -> int:
    factor = scaling.get("factor")
    if not isinstance(factor, int | float) or factor <= 1:
        return limit
    # Llama 3.1 writes the stretched length into max_position_embeddings and the first one here, Qwen2.5 the same
    # length into both: in either case original x factor is what the model was stretched to.
    original = scaling.get("original_max_position_embeddings")
    if isinstance(original, int) and original > 0:
        return int(original * factor)
    return int(limit * factor) if scaling.get("rope_type", scaling.get("type")) != "llama3" else limit


def _has_chat_template(files: ModelFiles) -> bool:
    if files.optional("chat_template.jinja") or files.optional("chat_template.json"):
        return True
    try:
        settings = json.loads(files.optional("tokenizer_config.json") or "{}")
    except ValueError:
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))


def _known_to_transformers(model_type: str) -> bool:
    """Whether the installed transformers has this family, seen from its folder names: importing it costs seconds.

    Many repositories carry an auto_map from before transformers took their family in; its own code is used then.
    """
    from importlib.util import find_spec

    found = find_spec("transformers")
    places = (found.submodule_search_locations or []) if found else []
    return any((Path(place) / "models" / model_type.replace("-", "_")).is_dir() for place in places)


def _parse_json(text: str, source: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{source}: not valid JSON ({error})", "fetch the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{source}: a JSON object is expected, not {type(config).__name__}", "fetch the model again")
    return config

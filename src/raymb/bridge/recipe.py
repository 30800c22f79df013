"""What a recipe of Megatron-Bridge sets, as plain values: `python -m raymb.bridge.recipe`, a process of its own.

A recipe makes the model's provider from its Hugging Face config.json, which means the hub, and then sets some of the
provider's fields. Only those are wanted here, so the recipe is given a recorder for a provider: no hub is asked and no
file of the model is needed. Input: {"module", "function", "scheme"} as JSON; output: see `read`, or {"error"}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import importlib
import inspect
import json
import os
import sys
import traceback
from typing import Any

_FIRST_CLASS = ("model", "dataset", "tokenizer", "peft", "mixed_precision", "env_vars")
"""Sections of the ConfigContainer that are read in ways of their own."""


class RecordedModel:
    """Stands for a provider: keeps what is set, and answers with the defaults of Bridge's GPT provider.

    Args:
        hf_model: what AutoBridge.from_hf_pretrained was given: {"hf_model_path", "hf_revision", "trust_remote_code"}.
    """

    def __init__(self, hf_model: dict[str, Any]):
        vars(self).update(_hf_model=hf_model, _set={}, _asked=[])

    def __setattr__(self, name: str, value: Any) -> None:
        self._set[name] = value

    def __getattr__(self, name: str) -> Any:
        if name in self._set:
            return self._set[name]
        defaults = provider_defaults()
        if name not in defaults:
            raise AttributeError(name)
        self._asked.append(name)
        return defaults[name]


class RecordingBridge:
    """Stands for AutoBridge."""

    def __init__(self, hf_model: dict[str, Any]):
        self.hf_model = hf_model

    @classmethod
    def from_hf_pretrained(cls, path: Any, **settings: Any) -> RecordingBridge:
        known = {"hf_revision": settings.get("revision"), "trust_remote_code": settings.get("trust_remote_code", False)}
        return cls({"hf_model_path": str(path), **known})

    def to_megatron_provider(self, *args: Any, **settings: Any) -> RecordedModel:
        return RecordedModel(self.hf_model)


@functools.cache
def provider_defaults() -> dict[str, Any]:
    """Field to default of Bridge's GPT provider; fields that the model's config.json decides are None."""
    provider = importlib.import_module("megatron.bridge.models.gpt_provider").GPTModelProvider
    fields = {name: None if value is dataclasses.MISSING else value for name, value in _defaults(provider).items()}
    return fields | {"vocab_size": 0}


def read(module: str, function: str, scheme: str | None) -> dict[str, Any]:
    """Run a recipe.

    Args:
        scheme: lora or dora, for a recipe that asks.

    Returns:
        model: hf_model_path, hf_revision, trust_remote_code; None where the recipe makes its model by hand.
        values: path to plain value, for every field of a section, and those of the model that the recipe sets.
        changed: the paths whose value is not the default of Bridge's class.
        unsaid: paths whose value is code.
        asked: fields that only the model's config.json tells, which the recipe looked at.
        precision, peft, dataset, env: of those sections, see the functions below.
    """
    recipe = getattr(importlib.import_module(module), function)
    takes_scheme = "peft_scheme" in inspect.signature(recipe).parameters
    config = recipe(peft_scheme=scheme) if scheme and takes_scheme else recipe()
    found: dict[str, Any] = {"model": None, "values": {}, "changed": [], "unsaid": [], "asked": []}
    _read_model(config.model, found)
    for section in dataclasses.fields(config):
        if section.name not in _FIRST_CLASS and not section.name.startswith("_"):
            _read_section(section.name, getattr(config, section.name), found)
    return found | {
        "precision": _precision(config.mixed_precision),
        "peft": _peft(config.peft),
        "dataset": _dataset(config.dataset),
        "env": {name: str(value) for name, value in (getattr(config, "env_vars", None) or {}).items()},
        "tokenizer": config.tokenizer.tokenizer_model,
    }


def _read_model(model: Any, found: dict[str, Any]) -> None:
    if isinstance(model, RecordedModel):
        found["model"], found["asked"] = model._hf_model, sorted(set(model._asked) - model._set.keys())
        values, defaults = model._set, provider_defaults()
    else:  # made by hand, sizes and all: how it is trained is in the fields of Megatron-Core's parallel configuration
        parallel = importlib.import_module("megatron.core.model_parallel_config").ModelParallelConfig
        names = {item.name for item in dataclasses.fields(parallel)}
        names |= {"seq_length", "recompute_granularity", "recompute_method", "recompute_num_layers"}
        values = {name: getattr(model, name) for name in sorted(names) if hasattr(model, name)}
        defaults = {**provider_defaults(), **_defaults(type(model))}
    _add("model", values, defaults, found)


def _read_section(name: str, section: Any, found: dict[str, Any]) -> None:
    if dataclasses.is_dataclass(section):
        values = {item.name: getattr(section, item.name) for item in dataclasses.fields(section)}
        _add(name, values, _defaults(type(section)), found)
    elif section is not None:
        found["unsaid"].append(name)


def _add(section: str, values: dict[str, Any], defaults: dict[str, Any], found: dict[str, Any]) -> None:
    for name, value in values.items():
        path = f"{section}.{name}"
        try:
            found["values"][path] = _plain(value)
        except TypeError:
            found["unsaid"].append(path)
            continue
        decided_elsewhere = section == "model" and name in _of_the_hugging_face_config()
        if name not in defaults or decided_elsewhere or not _same(value, defaults[name]):
            found["changed"].append(path)


@functools.cache
def _of_the_hugging_face_config() -> frozenset[str]:
    """Provider fields that Bridge takes from config.json, so that setting one to Bridge's default says something."""
    bridge = importlib.import_module("megatron.bridge.models.conversion.model_bridge").MegatronModelBridge
    return frozenset(field for _, field in bridge.CONFIG_MAPPING)


def _same(value: Any, default: Any) -> bool:
    with contextlib.suppress(TypeError):
        return _plain(value) == _plain(default)
    return value is default


def _defaults(cls: type) -> dict[str, Any]:
    """Field to default, as the class makes it where it can be made without arguments."""
    with contextlib.suppress(Exception):
        instance = cls()
        return {item.name: getattr(instance, item.name) for item in dataclasses.fields(cls)}
    return {
        item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        for item in dataclasses.fields(cls)
    }


def _plain(value: Any) -> Any:
    """A value as YAML has it: `torch.bfloat16` and the name of an enumeration's member as words.

    Raises:
        TypeError: code, or an object.
    """
    import torch

    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    raise TypeError(type(value).__name__)


def _precision(mixed: Any) -> dict[str, Any] | None:
    """{"name"} of a recipe of Bridge's, or {"fp8", "fp8_recipe", "bf16", "grad_reduce_in_fp32"}; None for fp32."""
    if isinstance(mixed, str):
        mixed = importlib.import_module("megatron.bridge.training.mixed_precision").get_mixed_precision_config(mixed)
    names = ("bf16", "fp16", "fp8", "fp8_recipe", "fp4", "grad_reduce_in_fp32")
    return None if mixed is None else {name: getattr(mixed, name, None) for name in names}


def _peft(peft: Any) -> dict[str, Any] | None:
    """{"kind": the class's name, "dim", "alpha", "dropout", "target_modules"}; None for the whole model."""
    names = ("dim", "alpha", "dropout", "target_modules")
    if peft is None:
        return None
    return {"kind": type(peft).__name__, **{name: getattr(peft, name, None) for name in names}}


def _dataset(dataset: Any) -> dict[str, Any]:
    """{"kind": the class's name, "seq_length", "packing", "name" of a hub dataset, "validation_split"}."""
    source = getattr(dataset, "hf_dataset", None) or getattr(dataset, "source", None)
    return {
        "kind": type(dataset).__name__,
        "seq_length": getattr(dataset, "seq_length", None),
        "packing": bool(getattr(dataset, "enable_offline_packing", False)),
        "name": getattr(source, "dataset_name", None) or getattr(source, "path_or_dataset", None),
        "validation_split": getattr(dataset, "hf_validation_proportion", None),
    }


def activate() -> None:
    """Make Bridge importable, with stand-ins for the packages of CUDA, and put the recorder in AutoBridge's place."""
    from raymb.bridge.patches import imports
    from raymb.rank.accelerator import ACCELERATORS

    imports.install()
    ACCELERATORS["cpu"].activate()
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")  # first: it is part of a circle
    importlib.import_module("megatron.bridge").AutoBridge = RecordingBridge  # type: ignore[attr-defined]
    # Some recipes enlarge the vocabulary to the tokenizer's size, which raymb sees to itself.
    importlib.import_module("transformers").AutoTokenizer.from_pretrained = lambda *args, **settings: ()


def main() -> None:
    asked = json.loads(sys.stdin.read())
    os.environ["HF_HUB_OFFLINE"] = "1"  # a recipe that asks for more than it is given here fails at once
    try:
        activate()
        result = read(**asked)
    except Exception as error:
        traceback.print_exc()
        result = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""What lies beside the weights of a directory that is made of a model: the model's own small files, with what changed
edited in. What transformers 4 and 5 look for in different places is written in both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from raymb.model.directory import MADE_OF
from raymb.model.files import WEIGHTS

NOT_OF_THE_MODEL = (
    ".*",
    "README*.md",
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.pdf", "*.mp4"),
    *("adapter_config.json", MADE_OF),
    *("[0-9]_*", "original", "runs"),
)
"""Files and folders that no loader of the model reads: the card and pictures, what belongs to other weights, folders of
sentence-transformers (1_Pooling), of Meta's own format, and of transformers' trainer. Licenses and policies are taken
along, which many ask for."""
LARGEST_FOLDER = 64 << 20
"""Bytes of a subfolder that still counts as small files."""
FORMER_NAMES = (
    *("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"),
    *("num_experts", "tie_word_embeddings"),
)
"""Entries of config.json that are transformers 4's places of what transformers 5 has elsewhere."""
_BOTH_HAVE = {"TokenizersBackend": "PreTrainedTokenizerFast"}
_RENAMED_EXPERTS = ("qwen3_moe", "qwen3_vl_moe", "qwen3_omni_moe")
"""Beginnings of the model types whose num_experts is num_local_experts in transformers 5."""
_IN_ROPE = ("rope_theta", "partial_rotary_factor")
"""What transformers 5 has in rope_parameters that transformers 4 has beside rope_scaling."""

Json = dict[str, Any]


def write_source_files(base: Path, target: Path, *, dtype: str | None = None, template: str | None = None) -> None:
    """The small files of an export.

    Args:
        base: Hugging Face directory of the model that was tuned.
        target: a directory that exists.
        dtype: torch's name of the type that all tensors have; None: each has its own of the base.
        template: text of the chat template that the model was tuned with; None: the base's own.
    """
    copy_small_files(base, target)
    if dtype is not None:
        _edit(target / "config.json", lambda config: _name_type(config, dtype))
    if template:
        _write_template(target, template)
    for_both_versions(target)


def copy_small_files(base: Path, target: Path) -> None:
    """Configuration, tokenizer, templates, processor, code, license, also in subfolders; no weights and no card."""
    for path in base.iterdir():
        if any(fnmatch(path.name, pattern) for pattern in (*WEIGHTS, *NOT_OF_THE_MODEL)):
            continue
        if path.is_file():
            shutil.copyfile(path, target / path.name)
        elif path.is_dir() and _is_small(path):
            shutil.copytree(path, target / path.name, copy_function=shutil.copyfile, dirs_exist_ok=True)


def for_both_versions(directory: Path) -> None:
    """Have transformers 4.57 and 5 read the same from config.json and tokenizer_config.json. A file that says all to
    both is not touched."""
    _edit(directory / "config.json", lambda config: _in_every_part(config, _parameters_for_both))
    _edit(directory / "config.json", _tie_for_both)
    _edit(directory / "tokenizer_config.json", _tokenizer_for_both)


def name_tokenizer_class(directory: Path, name: str) -> None:
    """Have tokenizer_config.json name the class, for a directory without config.json, whose model type says it
    otherwise. A tokenizer with code of its own has that named already.

    Args:
        name: of a class of transformers.
    """

    def change(settings: Json) -> None:
        if "auto_map" not in settings and str(settings.get("tokenizer_class")).removesuffix("Fast") != name:
            settings["tokenizer_class"] = name

    file = directory / "tokenizer_config.json"
    if not file.is_file():
        file.write_text("{}\n", encoding="utf-8")
    _edit(file, change)
    _edit(file, _tokenizer_for_both)


def add_to_tokenizer(directory: Path, tokens: Mapping[int, Any]) -> bool:
    """Write added tokens (tokenizers.AddedToken) that are not there into tokenizer.json, by their ids. Returns whether
    there is such a file."""

    def add(content: Json) -> None:
        known = {token["id"] for token in content["added_tokens"]}
        new = [{"id": id_, **token.__getstate__()} for id_, token in sorted(tokens.items()) if id_ not in known]
        content["added_tokens"] += new

    def record(settings: Json) -> None:
        if known := settings.get("added_tokens_decoder"):
            known.update({str(id_): token.__getstate__() for id_, token in tokens.items() if str(id_) not in known})

    _edit(directory / "tokenizer.json", add)
    _edit(directory / "tokenizer_config.json", record)
    return (directory / "tokenizer.json").is_file()


def config_differences(found: Json, wanted: Json, may_differ: tuple[str, ...] = ()) -> list[str]:
    """A sentence for each entry that differs between two configurations as one transformers reads them. Only the found
    one may have FORMER_NAMES."""
    differences = []
    for name in sorted(found.keys() | wanted.keys()):
        one, other = found.get(name), wanted.get(name)
        if name in may_differ or one == other or (name in FORMER_NAMES and name not in wanted):
            continue
        if name.endswith("_config") and isinstance(one, dict) and isinstance(other, dict):
            differences += [f"{name}: {line}" for line in config_differences(one, other, may_differ)]
        else:
            differences.append(f"{name} is {one} instead of {other}")
    return differences


def _is_small(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = any(fnmatch(file.name, pattern) for file in files for pattern in WEIGHTS)
    return not weights and sum(file.stat().st_size for file in files) <= LARGEST_FOLDER


def _edit(file: Path, change: Callable[[Json], object]) -> None:
    """Write a JSON file again if `change` changes its object."""
    if file.is_file():
        former = file.read_text(encoding="utf-8")
        content = json.loads(former)
        change(content)
        if content != json.loads(former):
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _in_every_part(config: Json, change: Callable[[Json], object]) -> None:
    """Of a model with several parts (text_config, vision_config, ...) each of them, too."""
    change(config)
    for name, part in config.items():
        if isinstance(part, dict) and name.endswith("_config") and name != "quantization_config":
            _in_every_part(part, change)


def _write_template(directory: Path, template: str) -> None:
    """The one template, in every place that some loader looks at."""
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    shutil.rmtree(directory / "additional_chat_templates", ignore_errors=True)
    for name in ("tokenizer_config.json", "chat_template.json"):
        _edit(directory / name, lambda text: text.update(dict.fromkeys({"chat_template"} & set(text), template)))


def _name_type(config: Json, dtype: str) -> None:
    """Of the whole model, and of each part that names one."""
    config["dtype"] = dtype
    _in_every_part(config, lambda part: part.update(dict.fromkeys({"dtype", "torch_dtype"} & set(part), dtype)))


def _parameters_for_both(part: Json) -> None:
    if dtype := part.get("dtype") or part.get("torch_dtype"):
        part["dtype"] = part["torch_dtype"] = dtype
    names = ("num_experts", "num_local_experts")
    if str(part.get("model_type")).startswith(_RENAMED_EXPERTS) and (count := part.get(names[0]) or part.get(names[1])):
        part.update(dict.fromkeys(names, count))
    rope = part.get("rope_parameters")
    added = _former_rope(rope, part) if rope else _new_rope(part)
    part.update({name: value for name, value in added.items() if part.get(name) is None})


def _former_rope(rope: Json, part: Json) -> Json:
    """Where transformers 4 has the rotary embedding. One that differs between layers it knows of Gemma 3 only."""
    added: Json = {}
    if isinstance(rope.get("full_attention"), dict):
        if not str(part.get("model_type")).startswith("gemma3"):
            return {}
        added["rope_local_base_freq"] = rope.get("sliding_attention", {}).get("rope_theta")
        rope = rope["full_attention"]
    scaling = {name: value for name, value in rope.items() if name not in _IN_ROPE}
    if scaling and scaling != {"rope_type": "default"}:
        added["rope_scaling"] = scaling
    return added | {name: rope[name] for name in _IN_ROPE if rope.get(name) is not None}


def _new_rope(part: Json) -> Json:
    """Where transformers 5 has the rotary embedding; nothing where a model has a base that is none of these two."""
    bases = {name for name in part if "theta" in name or "base_freq" in name}
    theta = part.get("rope_theta")
    if not isinstance(theta, int | float) or not bases <= {"rope_theta", "rope_local_base_freq"}:
        return {}
    scaling = {"rope_type": (part.get("rope_scaling") or {}).get("type", "default"), **(part.get("rope_scaling") or {})}
    scaling.pop("type", None)
    if scaling["rope_type"] == "mrope":
        scaling["rope_type"] = "default"
    whole = scaling | {name: part[name] for name in _IN_ROPE if part.get(name) is not None}
    if "rope_local_base_freq" not in part:
        return {"rope_parameters": whole}
    local = {"rope_type": "default", "rope_theta": part["rope_local_base_freq"]}
    return {"rope_parameters": {"full_attention": whole, "sliding_attention": local}}


def _tie_for_both(config: Json) -> None:
    """Whether input and output embedding are one: transformers 4 asks the language part of a model that has others,
    where transformers 5 does not save it."""
    saved_by_5 = str(config.get("transformers_version")).startswith("5")
    if saved_by_5 and isinstance(text := config.get("text_config"), dict) and "tie_word_embeddings" in config:
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])


def _tokenizer_for_both(settings: Json) -> None:
    if (name := settings.get("tokenizer_class")) in _BOTH_HAVE:
        settings["tokenizer_class"] = _BOTH_HAVE[name]
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 4 has a mapping of that name
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if named := settings.get("model_specific_special_tokens"):
        settings.setdefault("extra_special_tokens", named)

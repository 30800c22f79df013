"""The small files of a directory that is made of a model: which are taken along, what is edited in, and that
transformers 4 and 5 read the same from them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.families import FAMILIES, make_model
from tests.models import make_tiny_qwen25_vl
from tests.transformers_4 import differences, read

from raymb.model.source_files import (
    config_differences,
    copy_small_files,
    for_both_versions,
    name_tokenizer_class,
    write_source_files,
)

SHAPES = Path(__file__).parents[1] / "shapes"
TAKEN = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("qwen.tiktoken", "tokenizer.model", "merges.txt", "vocab.json", "chat_template.jinja", "tekken.json"),
    *(
        "LICENSE",
        "NOTICE.txt",
        "LICENSE.md",
        "USE_POLICY.md",
        "modeling_own.py",
        "preprocessor_config.json",
        "additional_chat_templates/tool_use.jinja",
        "extra/words.txt",
    ),
}
LEFT = {
    *("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "model.onnx"),
    *("README.md", ".gitattributes", "loss.png", "made_of.json"),
    *("adapter_config.json", "1_Pooling/config.json", "original/params.json", "onnx/model.onnx", "onnx/config.json"),
    *(".cache/huggingface/download/config.json.lock", "checkpoint-5/model.safetensors", "checkpoint-5/config.json"),
}
THETA = {"rope_type": "default", "rope_theta": 50000.0}
"""None of transformers' own defaults."""
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def test_what_is_taken_along(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    for name in TAKEN | LEFT:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(json.dumps({"file": name}))
    (base / "linked.py").symlink_to(base / "modeling_own.py")  # as in the Hugging Face cache
    (base / "rows").mkdir()
    with open(base / "rows" / "train.jsonl", "wb") as file:
        os.truncate(file.fileno(), (64 << 20) + 1)
    target.mkdir()
    copy_small_files(base, target)
    taken = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    assert taken == TAKEN | {"linked.py"}
    assert all((target / name).read_bytes() == (base / name).read_bytes() for name in TAKEN)
    assert not (target / "linked.py").is_symlink()


def test_files_that_say_all_to_both_are_copied_as_they_are(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    base.mkdir(), target.mkdir()
    write_json(base / "config.json", {"b": 1, "a": {"x_config": None}, "torch_dtype": "float16", "dtype": "float16"})
    (base / "tokenizer_config.json").write_text('{"tokenizer_class":   "Qwen2Tokenizer", "pad_token": "\u00e9"}')
    write_source_files(base, target)
    for name in ("config.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (base / name).read_bytes()


QWEN3_MOE = {"model_type": "qwen3_moe", "dtype": "bfloat16", "rope_parameters": THETA, "num_local_experts": 8}
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
GLM = {"model_type": "glm4_moe", "rope_parameters": {**THETA, "partial_rotary_factor": 0.5}}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}


@pytest.mark.parametrize(
    ("config", "added"),
    [
        (
            QWEN3_MOE,
            {"torch_dtype": "bfloat16", "rope_theta": 50000.0, "num_experts": 8},
        ),
        ({"torch_dtype": "float16"}, {"dtype": "float16"}),
        ({"torch_dtype": None, "rope_parameters": None}, {}),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
        ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
            {"rope_parameters": MROPE},
        ),
        (GLM, {"rope_theta": 50000.0, "partial_rotary_factor": 0.5}),
        (
            {"model_type": "gemma3_text", "rope_parameters": BY_LAYER},
            {
                "rope_theta": 2e6,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_local_base_freq": 3e4,
            },
        ),
        (
            {"rope_theta": 2e6, "rope_local_base_freq": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"rope_parameters": BY_LAYER},
        ),
        ({"model_type": "gemma4_text", "rope_parameters": BY_LAYER}, {}),  # transformers 4 has no such model
        ({"rope_theta": 1e6, "swa_rope_theta": 1e4}, {}),  # which layers have which is the model's own affair
        ({"rope_theta": [1e6, 1e4]}, {}),
    ],
)
def test_both_places_are_written(config: dict[str, Any], added: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config)
    for_both_versions(tmp_path)
    written = read_json(tmp_path / "config.json")
    assert written == {**config, **added}
    once = (tmp_path / "config.json").read_bytes()
    for_both_versions(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == once
    (tmp_path / "nested").mkdir()
    write_json(tmp_path / "nested" / "config.json", {"text_config": config, "quantization_config": config})
    for_both_versions(tmp_path / "nested")
    nested = read_json(tmp_path / "nested" / "config.json")
    assert nested == {"text_config": written, "quantization_config": config}


@pytest.mark.parametrize("name", sorted(file.name for file in SHAPES.glob("*.json")))
def test_a_published_config_means_what_it_meant(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    published = read_json(SHAPES / name)
    write_json(tmp_path / "config.json", published)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    for_both_versions(tmp_path)
    written = read_json(tmp_path / "config.json")
    assert {key: written[key] for key in published if published[key] is not None}.items() <= published.items()
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before
    assert written["rope_parameters"] == before["rope_parameters"]
    # What transformers 5 saves, once edited, means the same, too, and has the published places again.
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    for_both_versions(tmp_path)
    again = read_json(tmp_path / "config.json")
    assert config_differences(AutoConfig.from_pretrained(tmp_path).to_dict(), before, ("_name_or_path",)) == []
    names = ("rope_theta", "rope_scaling", "torch_dtype", "num_experts")
    assert [again.get(key) for key in names] == [published.get(key) for key in names]


def test_the_type_of_the_tensors_is_named_in_every_part(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    base.mkdir(), target.mkdir()
    text, vision = {"torch_dtype": "bfloat16"}, {"hidden_size": 4}
    config = {"torch_dtype": "bfloat16", "text_config": text, "vision_config": vision}
    write_json(base / "config.json", config)
    write_source_files(base, target, dtype="float32")
    types = dict.fromkeys(("dtype", "torch_dtype"), "float32")
    assert read_json(target / "config.json") == {**types, "text_config": types, "vision_config": vision}
    write_json(base / "config.json", {})
    write_source_files(base, target, dtype="float16")
    assert read_json(target / "config.json") == dict.fromkeys(types, "float16")


def test_another_template_is_the_only_one(tmp_path: Path) -> None:
    base, target = tmp_path / "base", tmp_path / "target"
    (base / "additional_chat_templates").mkdir(parents=True), target.mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("old")
    write_json(base / "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "old"}], "a": 1})
    write_json(base / "chat_template.json", {"chat_template": "old"})
    write_source_files(base, target, template="new")
    assert read_json(target / "tokenizer_config.json") == {"chat_template": "new", "a": 1}
    assert read_json(target / "chat_template.json") == {"chat_template": "new"}
    assert (target / "chat_template.jinja").read_text() == "new"
    assert not (target / "additional_chat_templates").exists()
    write_json(base / "tokenizer_config.json", {"a": 1})
    write_source_files(base, target, template="new")
    assert read_json(target / "tokenizer_config.json") == {"a": 1}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tokenizer_class": "TokenizersBackend"}, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ({"tokenizer_class": "Qwen2Tokenizer"}, {"tokenizer_class": "Qwen2Tokenizer"}),
        ({"extra_special_tokens": ["<a>"]}, {"additional_special_tokens": ["<a>"]}),
        ({"extra_special_tokens": {"image_token": "<a>"}}, {"extra_special_tokens": {"image_token": "<a>"}}),
        (
            {"model_specific_special_tokens": {"image_token": "<a>"}},
            {key: {"image_token": "<a>"} for key in ("model_specific_special_tokens", "extra_special_tokens")},
        ),
    ],
)
def test_tokenizer_settings_of_transformers_5(settings: Any, expected: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", settings)
    for_both_versions(tmp_path)
    assert read_json(tmp_path / "tokenizer_config.json") == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (None, "PreTrainedTokenizerFast"),
        ({"tokenizer_class": "LlamaTokenizerFast"}, "PreTrainedTokenizerFast"),  # DeepSeek-V3's, which is none
        ({"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}, "OwnTokenizer"),
    ],
)
def test_a_directory_without_config_names_its_tokenizer_class(settings: Any, named: str, tmp_path: Path) -> None:
    if settings is not None:
        write_json(tmp_path / "tokenizer_config.json", settings)
    name_tokenizer_class(tmp_path, "TokenizersBackend")
    assert read_json(tmp_path / "tokenizer_config.json")["tokenizer_class"] == named


def test_what_differs_between_two_configs() -> None:
    wanted = {"a": 1, "dtype": "x", "text_config": {"b": 2, "rope_parameters": THETA}}
    found = {"a": 1, "dtype": "y", "rope_theta": 1e4, "text_config": {"b": 2, "rope_theta": 1.0, "c": 3}}
    assert config_differences(found, wanted, ("dtype",)) == [
        "text_config: c is 3 instead of None",
        f"text_config: rope_parameters is None instead of {THETA}",
    ]
    assert config_differences({"rope_theta": 2.0}, {"rope_theta": 1.0}) == ["rope_theta is 2.0 instead of 1.0"]


NOT_IN_TRANSFORMERS_4 = {"GLM-4.7-Flash", "GLM-5", "Gemma 4", "Gemma 4 MoE", "Hy3", "K-EXAONE", "MiniMax-M2"}
NOT_IN_TRANSFORMERS_4 |= {"Nemotron-H", "Qwen3.5", "Qwen3.5-MoE"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_family_means_the_same_to_transformers_4(
    tmp_path: Path, transformers_4: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sources are as transformers 5 saves them. All but the weights is what an export has."""
    exports = []
    for family in [*(FAMILIES.keys() - NOT_IN_TRANSFORMERS_4), "Qwen2.5-VL"]:
        base, export = tmp_path / "bases" / family, tmp_path / family
        if family == "Qwen2.5-VL":
            make_tiny_qwen25_vl(base)
        else:
            own = FAMILIES[family][1].get("rope_parameters", THETA)
            rope = copy.deepcopy(BY_LAYER if family == "Gemma 3" else own)  # transformers writes into it
            make_model(family, base, rope_parameters=rope)
        export.mkdir()
        write_source_files(base, export)
        os.link(base / "model.safetensors", export / "model.safetensors")
        exports.append(export)
    four, five = read(exports, tmp_path, transformers_4), read(exports, tmp_path)
    assert {one["version"] for one in four.values()} == {"4.57.3"}
    found = {family: differences(four[family], five[family]) for family in five}
    # An infinite number as transformers 5 saves it; a published Falcon-H1 has it in JavaScript's way.
    assert found.pop("Falcon-H1").keys() == {"time_step_limit"}
    assert found == {family: {} for family in found}

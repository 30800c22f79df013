"""Sizes from config.json alone, and what is said about models that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS, write_shape_only_model

from raymb.errors import ModelError
from raymb.model.shape import ModelShape, read_model_shape


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, 1024),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}}, 1024),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 1024),
        ({"rope_parameters": {"full": {"factor": 8.0, "rope_type": "linear"}, "sliding": {}}}, 8192),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_the_longest_sequence(extra, expected):
    assert ModelShape.from_config(QWEN2_4_LAYERS | extra).max_position_embeddings == expected


@pytest.mark.parametrize(
    ("extra", "groups", "kind"),
    [
        ({}, 4, "gqa"),
        ({"num_key_value_heads": 8}, 8, "mha"),
        ({"num_key_value_heads": None}, 8, "mha"),
        ({"num_key_value_heads": 1}, 1, "mqa"),
        ({"num_key_value_heads": None, "multi_query": True}, 1, "mqa"),
        ({"num_key_value_heads": None, "multi_query_attention": True, "multi_query_group_num": 2}, 2, "gqa"),
    ],
)
def test_key_value_groups(extra, groups, kind):
    shape = ModelShape.from_config(QWEN2_4_LAYERS | extra)
    assert (shape.num_kv_heads, shape.attention) == (groups, kind)


def test_gpt2_names_and_the_language_part_of_a_multimodal_model():
    shape = ModelShape.from_config({"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257, "n_positions": 64})
    assert (shape.num_layers, shape.intermediate_size, shape.max_position_embeddings) == (12, 3072, 64)
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": QWEN2_4_LAYERS, "vision_config": {}}
    shape = ModelShape.from_config(nested)
    assert (shape.architecture, shape.model_type, shape.num_layers) == ("Gemma3ForConditionalGeneration", "qwen2", 4)


def test_experts():
    shape = ModelShape.from_config(QWEN3_MOE_4_LAYERS)
    assert (shape.num_experts, shape.experts_per_token, shape.moe_intermediate_size) == (8, 2, 48)
    dense = ModelShape.from_config(QWEN2_4_LAYERS)
    assert (dense.num_experts, dense.experts_per_token, dense.moe_intermediate_size) == (None, None, None)


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [None, 0, "many"])
def test_a_config_without_a_needed_size_is_refused(name, value):
    with pytest.raises(ModelError, match=name):
        ModelShape.from_config(QWEN2_4_LAYERS | {name: value})


def test_reading_a_directory(shape_only_model_dir):
    shape = read_model_shape(str(shape_only_model_dir))
    assert (shape.num_layers, shape.has_chat_template, shape.needs_remote_code) == (4, False, False)


@pytest.mark.parametrize(
    ("file", "content"),
    [("chat_template.jinja", "{{ messages }}"), ("tokenizer_config.json", json.dumps({"chat_template": "x"}))],
)
def test_a_chat_template_is_found(tmp_path, file, content):
    directory = write_shape_only_model(tmp_path)
    (directory / file).write_text(content)
    assert read_model_shape(str(directory)).has_chat_template


def test_remote_code_is_needed_only_where_transformers_lacks_the_family(tmp_path):
    old = QWEN2_4_LAYERS | {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}
    assert not read_model_shape(str(write_shape_only_model(tmp_path / "a", old))).needs_remote_code
    new = old | {"model_type": "brand_new_family"}
    assert read_model_shape(str(write_shape_only_model(tmp_path / "b", new))).needs_remote_code


def broken(directory: Path, what: str) -> Path:
    write_shape_only_model(directory)
    if what == "index":
        (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1-of-2.safetensors"}}')
    elif what == "lfs":
        (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    else:
        (directory / what).unlink()
    return directory


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "no tokenizer"),
        ("index", "model-1-of-2.safetensors"),
        ("lfs", "git-lfs pointer"),
    ],
)
def test_an_incomplete_directory_is_refused(tmp_path, what, message):
    with pytest.raises(ModelError, match=message):
        read_model_shape(str(broken(tmp_path, what)))


def hub_cache(home: Path, files: dict[str, str], commit: str = "0" * 40) -> None:
    """A model in the layout of the Hugging Face cache."""
    model = home / "models--some--model"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    for name, text in files.items():
        (snapshot / name).write_text(text)


def test_a_cached_hub_model_needs_no_network(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    files = {"config.json": json.dumps(QWEN2_4_LAYERS), "tokenizer_config.json": '{"chat_template": "x"}'}
    hub_cache(tmp_path, files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *a, **k: pytest.fail("the hub was asked"))
    shape = read_model_shape("some/model")
    assert (shape.num_layers, shape.has_chat_template) == (4, True)

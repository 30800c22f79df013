"""Sizes from config.json alone, and what is said about models that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS, write_shape_only_model

from raymb.errors import ModelError
from raymb.model.shape import ModelShape, read_model_shape

# Sizes of public models, from their config.json; counts as in their repositories' safetensors metadata.
PUBLIC = {
    "Qwen2.5-0.5B": (
        494_032_768,
        {
            "model_type": "qwen2",
            "num_hidden_layers": 24,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen2.5-7B": (
        7_615_616_512,
        {
            "model_type": "qwen2",
            "num_hidden_layers": 28,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
    ),
    "Llama-3.1-8B": (
        8_030_261_248,
        {
            "model_type": "llama",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
    ),
    "SmolLM2-135M": (
        134_515_008,
        {
            "model_type": "llama",
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-0.6B": (
        596_049_920,
        {
            "model_type": "qwen3",
            "num_hidden_layers": 28,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    "Qwen3-30B-A3B": (
        30_532_122_624,
        {
            "model_type": "qwen3_moe",
            "num_hidden_layers": 48,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "vocab_size": 151936,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "tie_word_embeddings": False,
        },
    ),
    "Mixtral-8x7B": (
        46_702_792_704,
        {
            "model_type": "mixtral",
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_parameter_counts_of_public_models(name):
    count, config = PUBLIC[name]
    shape = ModelShape.from_config(config)
    assert (shape.parameter_count, shape.parameter_count_is_exact) == (count, True)


def test_deepseek_v3_is_an_estimate_within_one_percent():
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "vocab_size": 129280,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "max_position_embeddings": 163840,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    }
    shape = ModelShape.from_config(config)
    assert shape.parameter_count == pytest.approx(671e9, rel=0.01)
    assert (shape.attention, shape.num_experts, shape.parameter_count_is_exact) == ("mla", 256, False)
    assert shape.max_position_embeddings == 163840


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

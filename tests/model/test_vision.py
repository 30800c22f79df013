"""Models that see: sizes out of config.json, forward steps, and what cannot be combined with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN25_VL_4_LAYERS

from raymb.cli import main
from raymb.errors import ModelError, PlanError, SpecError
from raymb.model.shape import ModelShape
from raymb.model.vision import check_forward_step, forward_step, module_name
from raymb.plan import make_plan
from raymb.spec import load_spec

SHAPE = ModelShape.from_config(QWEN25_VL_4_LAYERS)
QWEN25_VL_3B: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14, "in_chans": 3},
}


def test_parameters_are_those_that_transformers_makes():
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.initialization import no_init_weights

    config = Qwen2_5_VLConfig(
        **{**QWEN25_VL_3B, "vision_config": {**QWEN25_VL_3B["vision_config"], "out_hidden_size": 2048}}
    )
    with torch.device("meta"), no_init_weights():
        model = Qwen2_5_VLForConditionalGeneration(config)
    shape = ModelShape.from_config(QWEN25_VL_3B)
    assert shape.parameter_count_is_exact
    assert shape.parameter_count == sum(
        one.numel() for name, one in model.named_parameters() if name != "lm_head.weight"
    )  # tied
    assert shape.tower_parameters == sum(one.numel() for one in model.model.visual.parameters())


def test_the_vision_tower_is_whole_on_the_first_stage():
    flags = {"hf_model_path": "x", "num_workers": "4", "tensor_parallel_size": "2", "global_batch_size": "8"}
    plans = {}
    for stages in (1, 2):
        spec = load_spec({**flags, "pipeline_parallel_size": str(stages)})
        for name, config in (("vision", QWEN25_VL_3B), ("text", {**QWEN25_VL_3B, "vision_config": None})):
            plan = make_plan(spec, ModelShape.from_config(config), backend="cuda")
            assert plan.memory is not None
            plans[name, stages] = plan.memory["weights"]
    tower = ModelShape.from_config(QWEN25_VL_3B).tower_parameters
    assert plans["vision", 1] - plans["text", 1] == pytest.approx(2 * tower, abs=4)  # not split by tensor parallel


def test_the_forward_step_is_the_models():
    assert forward_step("auto", SHAPE.architecture) == "vlm_step"
    assert forward_step("auto", "Qwen2ForCausalLM") == "gpt_step"
    text = ModelShape.from_config(QWEN2_4_LAYERS)
    for step, shape in (("auto", SHAPE), ("vlm_step", SHAPE), ("auto", text), ("gpt_step", text)):
        check_forward_step(step, shape)
    for step, shape, own in (
        ("gpt_step", SHAPE, "vlm_step"),
        ("llava_step", SHAPE, "vlm_step"),
        ("vlm_step", text, "gpt_step"),
    ):
        with pytest.raises(SpecError, match=f"--step_func {step}: .* needs {own}"):
            check_forward_step(step, shape)
    other = ModelShape.from_config({**QWEN25_VL_4_LAYERS, "architectures": ["LlavaForConditionalGeneration"]})
    with pytest.raises(ModelError, match=r"has a vision_config .* raymb trains Qwen2.5-VL only"):
        check_forward_step("auto", other)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"packing": "true"}, "--packing is for rows of text"),
        ({"context_parallel_size": "2", "num_workers": "2"}, "--context_parallel_size 2 must be 1"),
        ({"overlap_grad_reduce": "true"}, "--overlap_grad_reduce waits for the gradient"),
        ({"megatron_fsdp": "optim"}, "--megatron_fsdp optim has been tried with language models only"),
        ({"sample_prompt": "held-out"}, "--sample_prompt held-out takes a prompt of text"),
    ],
)
def test_what_images_do_not_go_with(flags: dict[str, str], said: str):
    with pytest.raises(PlanError, match=said):
        make_plan(load_spec({"hf_model_path": "x", **flags}), SHAPE, backend="cpu")


def test_a_refusal_is_one_message(shape_only_vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--hf_model_path", str(shape_only_vlm_dir), "--storage_path", str(tmp_path), "--step_func", "llava_step"]
    assert main(["finetune", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --step_func llava_step: ") and "Traceback" not in error


def test_names_in_files_and_in_transformers():
    name = "model.layers.3.self_attn.q_proj.weight"
    assert module_name(SHAPE.architecture, name) == "model.language_model.layers.3.self_attn.q_proj.weight"
    assert module_name("Qwen2ForCausalLM", name) == name
    assert module_name(SHAPE.architecture, "visual.blocks.0.norm1.weight") == "visual.blocks.0.norm1.weight"

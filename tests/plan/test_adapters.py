"""Names of adapters' targets: Hugging Face's and Megatron's, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS

from raymb.errors import PlanError, SpecError
from raymb.model.shape import ModelShape
from raymb.plan import Plan, make_plan
from raymb.plan.adapters import Targets, targets_of
from raymb.plan.gpus import gpu_named
from raymb.plan.rules import Run, adapters
from raymb.spec import RunSpec, load_spec
from raymb.spec.training import Peft

DENSE, EXPERTS = ModelShape.from_config(QWEN2_4_LAYERS), ModelShape.from_config(QWEN3_MOE_4_LAYERS)
LATENT = replace(DENSE, architecture="DeepseekV2ForCausalLM", model_type="deepseek_v2", attention="mla")
TIED, UNTIED = (replace(DENSE, tie_word_embeddings=tied) for tied in (True, False))
NO_GATE = replace(DENSE, architecture="NemotronForCausalLM", model_type="nemotron")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def _spec(targets: str = "all-linear", peft: str = "lora", **flags: Any) -> RunSpec:
    return load_spec({"hf_model_path": "m", "peft": peft, "lora_target_modules": targets, **flags})


def problems_with(peft: Peft, shape: ModelShape) -> list[str]:
    return list(adapters.targets(Run(_spec().model_copy(update={"peft": peft}), shape)))


def _targets(shape: ModelShape, targets: str, peft: str = "lora") -> Targets:
    spec = _spec(targets, peft)
    assert problems_with(spec.peft, shape) == []
    return targets_of(spec.peft, shape)


def test_all_linear_is_every_projection_by_itself() -> None:
    split = ["linear_q", "linear_k", "linear_v", "linear_fc1_gate", "linear_fc1_up"]
    assert _targets(DENSE, "all-linear") == Targets(split, ["linear_proj", "linear_fc2"], ALL)
    assert _targets(DENSE, ",".join(ALL)) == _targets(DENSE, "all-linear")


@pytest.mark.parametrize("names", ["q_proj,v_proj", "v_proj q_proj", "linear_q,linear_v", "linear_v,q_proj"])
def test_parts_of_a_fused_matrix_by_either_name(names: str) -> None:
    assert _targets(DENSE, names) == Targets(["linear_q", "linear_v"], [], ["q_proj", "v_proj"])


def test_a_fused_matrix_by_megatrons_name_has_one_adapter() -> None:
    assert _targets(DENSE, "linear_qkv,up_proj") == Targets(["linear_fc1_up"], ["linear_qkv"], [*ALL[:3], "up_proj"])
    assert _targets(DENSE, "linear_fc1") == Targets([], ["linear_fc1"], ["gate_proj", "up_proj"])


def test_dora_takes_whole_matrices() -> None:
    whole = ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    assert _targets(DENSE, "all-linear", "dora") == Targets([], whole, ALL)
    assert _targets(DENSE, "o_proj", "dora") == Targets([], ["linear_proj"], ["o_proj"])


def test_families_with_other_projections() -> None:
    names = ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert _targets(LATENT, "all-linear").hugging_face == ["q_proj", *names]
    compressed = replace(LATENT, query_rank=32)
    assert _targets(compressed, "all-linear").hugging_face == ["q_a_proj", "q_b_proj", *names]
    assert "linear_q_up_proj" in _targets(compressed, "q_b_proj").whole
    assert _targets(NO_GATE, "up_proj") == Targets([], ["linear_fc1"], ["up_proj"])


@pytest.mark.parametrize(
    ("shape", "targets", "flags", "part"),
    [
        (DENSE, "qproj", {}, "--lora_target_modules qproj: Qwen2ForCausalLM has q_proj, k_proj"),
        (NO_GATE, "gate_proj", {}, "--lora_target_modules gate_proj: NemotronForCausalLM has"),
        (LATENT, "k_proj", {}, "--lora_target_modules k_proj: DeepseekV2ForCausalLM has q_proj, kv_a_proj"),
        (DENSE, "linear_qkv,q_proj", {}, "linear_qkv is one adapter over q_proj, k_proj, v_proj together"),
        (DENSE, "q_proj", {"peft": "dora"}, "q_proj with --peft dora: Megatron keeps q_proj, k_proj, v_proj in one"),
        (EXPERTS, "gate_proj", {}, "the experts of Qwen3MoeForCausalLM keep gate_proj, up_proj in one matrix"),
        (EXPERTS, "q_proj,k_proj,v_proj", {"peft": "dora"}, "--peft dora: Bridge 0.6.2 has no DoRA for the experts"),
        (EXPERTS, "gate_proj,up_proj", {}, "PEFT loads adapters of an expert's gate_proj and up_proj only together"),
        (replace(EXPERTS, model_type="glm4_moe"), "all-linear", {}, "PEFT 0.21 does not load adapters of the experts"),
        (EXPERTS, "gate", {"tensor_parallel_size": 2}, "must be 1 with adapters on gate, which Bridge 0.6.2 trains"),
        (
            EXPERTS,
            "all-linear",
            {"tensor_parallel_size": 2, "expert_tensor_parallel_size": 2},
            "--expert_tensor_parallel_size 2 must be 1 with --peft",
        ),
        (DENSE, "q_proj", {"lora_rank": 6, "tensor_parallel_size": 4}, "--lora_rank 6 must be a multiple of --tensor"),
        (UNTIED, "q_proj", {"modules_to_save": "norm"}, "of Qwen2ForCausalLM embed_tokens and lm_head can be trained"),
        (TIED, "q_proj", {"modules_to_save": "lm_head"}, "(lm_head is tied to it, and trained with it); name embed"),
        (replace(TIED, tower="vision"), "q_proj", {"modules_to_save": "embed_tokens"}, "has a vision part; leave it"),
        (UNTIED, "q_proj", {"add_tokens": "t.txt"}, "add --modules_to_save embed_tokens,lm_head"),
        (
            UNTIED,
            "q_proj",
            {"add_tokens": "t.txt", "modules_to_save": "embed_tokens"},
            "add --modules_to_save embed_tokens,lm_head, or leave",
        ),
        (TIED, "q_proj", {"add_tokens": "t.txt", "peft": "dora"}, "that --peft dora does not train"),
    ],
)
def test_what_cannot_be(shape: ModelShape, targets: str, flags: dict[str, Any], part: str) -> None:
    spec = _spec(targets, num_workers=flags.get("tensor_parallel_size", 1), **flags)
    with pytest.raises(PlanError) as refused:
        make_plan(spec, shape)
    assert part in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"lora_rank": 8}, "--lora_rank says how adapters are, and --peft none trains the whole model"),
        ({"modules_to_save": "lm_head"}, "--modules_to_save says how adapters are, and --peft none trains the whole"),
        ({"merge": True}, "--merge works adapters into the exported model, and --peft none leaves nothing to merge"),
        ({"peft": "lora", "merge": True, "export_hf": False}, "--no_export_hf leaves nothing to merge"),
        ({"peft": "dora", "lora_dropout": 0.1}, "--lora_dropout 0.1 with --peft dora"),
        ({"peft": "lora", "lora_target_modules": ","}, "--lora_target_modules"),
        ({"peft": "qlora"}, "--peft"),
        ({"peft": "lora", "lora_rank": 0}, "--lora_rank"),
    ],
)
def test_flags_that_contradict_each_other(flags: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec({"hf_model_path": "m", **flags})
    assert part in str(refused.value)


@pytest.mark.parametrize(("shape", "saved"), [(TIED, ["embed_tokens"]), (UNTIED, ["embed_tokens", "lm_head"])])
def test_modules_that_are_trained_in_full(shape: ModelShape, saved: list[str]) -> None:
    """They have gradients and an optimizer where they are, and no weights of their own."""
    flags = {"num_workers": 4, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, "gpu": "H100-80GB"}
    plain, full = (
        make_plan(_spec(**flags, **more), shape, backend="cuda", gpu=gpu_named("H100-80GB"))
        for more in ({}, {"modules_to_save": ",".join(saved)})
    )
    assert full.adapters and full.adapters.saved == saved
    assert full.memory and plain.memory
    table = shape.vocab_size * shape.hidden_size // 2
    differences = {part: full.memory[part] - plain.memory[part] for part in ("weights", "gradients", "optimizer")}
    assert differences == {"weights": 0, "gradients": 4 * table, "optimizer": 12 * table}
    assert full.step_time and plain.step_time and full.step_time["optimizer"] > plain.step_time["optimizer"]
    assert Plan.from_dict(full.to_dict()) == full


def test_added_tokens_are_trained_with_the_whole_tables() -> None:
    for shape, saved in ((TIED, "embed_tokens"), (UNTIED, "lm_head,embed_tokens")):
        spec = _spec("q_proj", add_tokens="t.txt", modules_to_save=saved)
        assert list(adapters.targets(Run(spec, shape))) == []


def test_a_run_without_adapters_has_none_in_its_plan() -> None:
    assert make_plan(load_spec({"hf_model_path": "m"}), DENSE).adapters is None
    assert make_plan(_spec("linear_proj"), DENSE).adapters == Targets([], ["linear_proj"], ["o_proj"])

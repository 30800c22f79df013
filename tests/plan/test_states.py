"""Models with layers that have states: what the plan counts, shares and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan import make_plan
from raymb.plan.table import plan_rows
from raymb.spec import load_spec

PUBLISHED = Path(__file__).parents[1] / "model" / "published"
NEXT = "Qwen--Qwen3-Next-80B-A3B-Thinking"
NANO = "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
FALCON = {
    "architectures": ["FalconH1ForCausalLM"],
    "model_type": "falcon_h1",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 304,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_norm_before_gate": False,
}
"""Sizes as its makers name them; smaller."""


def _config(name: str, **other: Any) -> dict[str, Any]:
    return json.loads((PUBLISHED / f"{name}.json").read_text())["config"] | other


def _refused(config: dict[str, Any], **flags: Any) -> str:
    given = {"hf_model_path": "m", "global_batch_size": 64, "seq_length": 4096, "gpu": "h200", **flags}
    with pytest.raises(PlanError) as refused:
        make_plan(load_spec({name: str(value) for name, value in given.items()}), ModelShape.from_config(config))
    return str(refused.value)


def test_layers_of_each_kind() -> None:
    """By the makers: every fourth layer of Qwen3-Next has attention; Nemotron 3 Nano has 6 with attention, 23 with
    Mamba 2 and 23 with experts, each with one part."""
    shape = ModelShape.from_config(_config(NEXT))
    assert (shape.attention_layers, shape.states.layers, shape.sparse_layers, shape.dense_layers) == (12, 36, 48, 0)
    assert shape.norms == 96 and shape.states.width == 2 * 16 * 128 + 2 * 32 * 128 + 2 * 32
    shape = ModelShape.from_config(_config(NANO))
    assert (shape.attention_layers, shape.states.layers, shape.sparse_layers, shape.dense_layers) == (6, 23, 23, 0)
    assert shape.norms == 52 and shape.states.width == 2 * 64 * 64 + 2 * 8 * 128 + 64
    shape = ModelShape.from_config(FALCON)
    assert (shape.attention_layers, shape.states.layers, shape.dense_layers, shape.norms) == (4, 4, 4, 8)


def test_a_list_of_layers_stands_for_their_number() -> None:
    """transformers 5 writes no num_hidden_layers for Nemotron-H, and n_routed_experts whether there are some or not."""
    config = _config(NANO, layers_block_type=["mamba", "attention", "mamba", "mlp"])
    del config["hybrid_override_pattern"], config["num_hidden_layers"]
    shape = ModelShape.from_config(config)
    assert (shape.num_layers, shape.dense_layers, shape.num_experts) == (4, 1, None)
    config["layers_block_type"][3] = "moe"
    assert ModelShape.from_config(config).num_experts == 128


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        (
            _config(NANO),
            {"num_workers": 16, "tensor_parallel_size": 16},
            "--tensor_parallel_size 16 must divide config.json's n_groups 8, by which workers share the layers that "
            "have states; set --tensor_parallel_size to one of 1, 2, 4, 8",
        ),
        (
            _config(NEXT),
            {"num_workers": 16, "tensor_parallel_size": 8, "context_parallel_size": 4, "pipeline_parallel_size": 1},
            "--tensor_parallel_size 8 x --context_parallel_size 4 must divide config.json's linear_num_key_heads 16, ",
        ),
        (
            FALCON,
            {"num_workers": 8, "tensor_parallel_size": 4, "backend": "cpu"},
            "must divide config.json's mamba_n_groups 2",
        ),
    ],
    ids=["groups", "heads", "Falcon-H1"],
)
def test_workers_share_heads_and_groups(config: dict[str, Any], flags: dict[str, Any], said: str) -> None:
    assert said in _refused(config, **flags)


def test_groups_that_context_parallel_workers_have_twice() -> None:
    """Megatron-Core's Mamba 2 shares the heads of a group then: 8 groups on 8 x 2 workers."""
    flags = {"hf_model_path": "m", "num_workers": 16, "tensor_parallel_size": 8, "context_parallel_size": 2}
    spec = load_spec({name: str(value) for name, value in (flags | {"global_batch_size": 8}).items()})
    assert make_plan(spec, ModelShape.from_config(_config(NANO)), backend="cpu").layout.context_parallel_size == 2


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        (
            _config(NANO),
            {"num_workers": 4, "pipeline_parallel_size": 4, "virtual_pipeline_parallel_size": 13},
            "--virtual_pipeline_parallel_size 13 must be 1 for NemotronHForCausalLM",
        ),
        (_config(NANO, conv_kernel=3), {"num_workers": 8}, "config.json's conv_kernel 3 is not computed"),
        (_config(NANO, time_step_limit=[0.0, 0.1]), {"num_workers": 8}, "time_step_limit [0.0, 0.1] is not computed"),
        (_config(NEXT, mlp_only_layers=[3]), {"num_workers": 8}, "mlp_only_layers [3] is not computed"),
        (FALCON, {"num_workers": 1, "packing": True, "backend": "cpu"}, "--packing is not possible with FalconH1"),
        (
            _config(NANO),
            {"num_workers": 8, "peft": "lora"},
            "PEFT 0.21 does not load adapters of the experts of NemotronHForCausalLM; set it to "
            "q_proj,k_proj,v_proj,o_proj",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(config: dict[str, Any], flags: dict[str, Any], said: str) -> None:
    assert said in _refused(config, **flags)


@pytest.mark.parametrize("high", [float("inf"), {"__float__": "Infinity"}])
def test_time_steps_without_a_limit(high: Any) -> None:
    """As JSON has it, and as transformers 5 writes it."""
    assert not ModelShape.from_config(_config(NANO, time_step_limit=[0.0, high])).other_settings


@pytest.mark.parametrize(
    ("backend", "needed"), [("cuda", ["GPU workers need the packages mamba-ssm, causal-conv1d"]), ("cpu", [])]
)
def test_the_plan_names_the_kernels(backend: str, needed: list[str]) -> None:
    shape = ModelShape.from_config(_config(NANO))
    spec = load_spec({"hf_model_path": "m", "num_workers": "8", "seq_length": "256", "global_batch_size": "64"})
    plan = make_plan(spec, shape, backend=backend)
    assert [text for name, text in plan_rows(plan, shape, "m") if name == "kernels"] == needed

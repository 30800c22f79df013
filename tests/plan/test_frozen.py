"""--freeze and --unfreeze: which parameters they name, and what they cannot do."""

from __future__ import annotations

from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN25_VL_4_LAYERS

from raymb.errors import SpecError
from raymb.model.shape import ModelShape
from raymb.plan.frozen import frozen_problems, is_frozen, trained_line
from raymb.spec import load_spec
from raymb.spec.training import Train

SHAPE = ModelShape.from_config(QWEN2_4_LAYERS)
TENSORS = {
    "model.embed_tokens.weight": [10, 4],
    **{
        f"model.layers.{layer}.{name}.weight": [2, 4]
        for layer in (0, 1)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj")
    },
    "model.layers.0.self_attn.q_proj.bias": [2],
    "model.norm.weight": [4],
}


def _train(**flags: Any) -> Train:
    return load_spec({"hf_model_path": "m", **flags}).train


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ({"freeze": [r"layers\.0\.", "embed"]}, 5),
        ({"unfreeze": "norm"}, 1),
        ({"freeze": "layers", "unfreeze": r"layers\.1\.mlp"}, 3),
    ],
)
def test_what_is_trained(flags: dict[str, Any], trained: int) -> None:
    train = _train(**flags)
    assert sum(not is_frozen(name, train) for name in TENSORS) == trained
    assert list(frozen_problems(train, SHAPE, TENSORS)) == []


def test_how_much_is_trained() -> None:
    assert not any(is_frozen(name, _train()) for name in TENSORS)
    line = trained_line(_train(freeze="layers"), TENSORS)
    assert line == "44 of the model's 110 parameters to train, 40.00% (--freeze 'layers')"


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"freeze": "blocks"}, "--freeze 'blocks' matches no parameter of Qwen2ForCausalLM, which has model.embed_tok"),
        ({"freeze": "."}, "--freeze '.' leaves no parameter of Qwen2ForCausalLM to train"),
        ({"freeze": "q_proj"}, "trains model.layers.0.self_attn.k_proj.weight, model.layers.0.self_attn.v_proj.weight"),
        ({"unfreeze": "v_proj"}, "Megatron keeps them in one matrix (linear_qkv)"),
    ],
)
def test_what_cannot_be(flags: dict[str, Any], part: str) -> None:
    (problem,) = frozen_problems(_train(**flags), SHAPE, TENSORS)
    assert part in problem


def test_other_models() -> None:
    (problem,) = frozen_problems(_train(freeze="x"), ModelShape.from_config(QWEN25_VL_4_LAYERS), TENSORS)
    assert "model.freeze_vision_model=true" in problem
    (problem,) = frozen_problems(_train(freeze="x"), SHAPE, {})
    assert "safetensors files, and this one has none" in problem


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ({"freeze": "("}, "--freeze"),
        ({"freeze": "x", "peft": "lora"}, "--freeze is for training the model itself"),
        ({"unfreeze": "x", "megatron_fsdp": "optim"}, "--unfreeze has not been tried with --megatron_fsdp optim"),
    ],
)
def test_flags_that_contradict_each_other(flags: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec({"hf_model_path": "m", **flags})
    assert part in str(refused.value)

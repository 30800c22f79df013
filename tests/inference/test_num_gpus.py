"""--num_gpus: how many GPUs a model goes to, and what each gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raymb.cli import main
from raymb.errors import SpecError
from raymb.inference.gpus import asked_gpus, gpus_for, model_bytes
from raymb.inference.transformers_engine import placement

GIB = 2**30
LLAMA = {"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
QWEN_7B = {"num_attention_heads": 28, "num_key_value_heads": 4, "intermediate_size": 18944}


@pytest.mark.parametrize(
    ("weights", "here", "config", "expected"),
    [
        (15, 8, None, 1),
        (15, 1, None, 1),
        (140, 8, None, 3),
        (140, 8, LLAMA, 4),  # 32 heads are no multiple of 3
        (810, 8, LLAMA, 8),  # too large: as much as there is
        (200, 8, QWEN_7B, 4),
        (15, 0, None, 0),
    ],
)
def test_the_fewest_gpus_that_hold_the_model(weights: int, here: int, config: Any, expected: int) -> None:
    assert gpus_for(None, [80 * GIB] * here, weights * GIB, config) == expected


def test_what_is_asked_for_is_taken() -> None:
    assert gpus_for(4, [80 * GIB] * 8, GIB, LLAMA) == 4
    assert gpus_for(3, [80 * GIB] * 8, GIB, None) == 3
    assert gpus_for(16, [80 * GIB] * 16, GIB, {"text_config": LLAMA}) == 16  # two GPUs share a key and value head


@pytest.mark.parametrize(
    ("asked", "here", "config", "message"),
    [
        (4, 2, None, r"--num_gpus 4: 2 GPUs can be used here\n  give at most 2"),
        (1, 0, None, r"--num_gpus 1: 0 GPUs can be used here\n  leave it out"),
        (
            3,
            4,
            LLAMA,
            r"--num_gpus 3: vLLM .* 32 attention heads are no multiple of 3\n  give 1 or 2 or 4, or --engine",
        ),
        (7, 8, QWEN_7B, r"4 key and value heads are neither a multiple nor a divisor of 7"),
        (8, 8, {**LLAMA, "intermediate_size": 14340}, r"the intermediate size of 14,340 is no multiple of 8"),
        (3, 4, {"text_config": LLAMA}, r"32 attention heads are no multiple of 3"),
    ],
)
def test_what_cannot_be_is_refused(asked: int, here: int, config: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        gpus_for(asked, [80 * GIB] * here, GIB, config)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_neither_a_number_nor_auto(text: str) -> None:
    with pytest.raises(SpecError, match="auto or a number above 0 is expected"):
        asked_gpus(text)


def test_the_commands_refuse_gpus_that_are_not_here(tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tiny_qwen2), "--prompt", "a", "--num_gpus", "99"]) == 2
    assert "--num_gpus 99: " in capsys.readouterr().err


def test_layers_go_to_the_gpus_that_are_given_and_nowhere_else(tiny_qwen2: Path) -> None:
    """As accelerate spreads them, which transformers asks with these settings; it needs no GPU to say so."""
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import get_balanced_memory
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_qwen2))
    model.tie_weights()
    whole = model_bytes(str(tiny_qwen2))
    settings = placement([whole, whole])
    assert settings["device_map"] == "auto"
    blocks = model._no_split_modules
    memory = get_balanced_memory(model, settings["max_memory"], no_split_module_classes=blocks)
    placed = infer_auto_device_map(model, memory, no_split_module_classes=blocks)
    assert set(placed.values()) == {0, 1}
    assert placement([whole]) == {"device_map": {"": 0}}
    assert placement([]) == {}

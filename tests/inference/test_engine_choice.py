"""transformers or vLLM, by vLLM's limits as they are published (vllm/config/lora.py, vllm/lora/peft_helper.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymb.cli import main
from raymb.errors import SpecError
from raymb.inference.choice import adapter_problems, choice, max_lora_rank

PLAIN = {"r": 16, "lora_alpha": 32, "use_dora": False, "use_rslora": False, "modules_to_save": None}


@pytest.mark.parametrize(
    ("rank", "taken"),
    [(1, 1), (2, 8), (8, 8), (9, 16), (17, 32), (33, 64), (100, 128), (200, 256), (257, 320), (321, 512), (512, 512)],
)
def test_the_smallest_rank_that_vllm_takes(rank: int, taken: int) -> None:
    assert max_lora_rank(rank) == taken


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"use_rslora": True, "r": 512}, []),
        ({"use_dora": True}, ["DoRA (use_dora"]),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, ["modules_to_save (embed_tokens, lm_head"]),
        ({"r": 513}, ["up to rank 512, and this one has 513"]),
        ({"r": 600, "use_dora": True}, ["DoRA", "600"]),
    ],
)
def test_adapters_that_vllm_cannot_have(changed: dict[str, Any], expected: list[str]) -> None:
    problems = list(adapter_problems(PLAIN | changed))
    assert len(problems) == len(expected)
    assert all(words in problem for words, problem in zip(expected, problems, strict=True))


def test_auto_takes_vllm_where_it_is_and_says_why_it_does_not() -> None:
    assert choice("auto", [], installed=True, on_gpu=True) == ("vllm", "")
    assert choice("auto", [], installed=True, on_gpu=False) == ("transformers", "")
    assert choice("auto", ["no DoRA"], installed=False, on_gpu=False) == ("transformers", "")
    assert choice("transformers", ["no DoRA"], installed=True, on_gpu=True) == ("transformers", "")
    assert choice("vllm", [], installed=True, on_gpu=False) == ("vllm", "")
    chosen, why = choice("auto", ["no DoRA", "rank 600"], installed=True, on_gpu=True)
    assert chosen == "transformers" and "no DoRA; rank 600" in why
    with pytest.raises(SpecError, match="--engine vllm: vLLM is not installed"):
        choice("vllm", [], installed=False, on_gpu=False)


def test_vllm_that_is_asked_for_in_vain(tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PLAIN | {"peft_type": "LORA", "use_dora": True, "base_model_name_or_path": str(tiny_qwen2)}
    for file in tiny_qwen2.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert main(["generate", str(tmp_path), "--prompt", "a", "--engine", "vllm"]) == 2
    error = capsys.readouterr().err
    assert "--engine vllm: vLLM has no DoRA" in error
    assert "--engine transformers" in error and "raymb export RUN --merge" in error

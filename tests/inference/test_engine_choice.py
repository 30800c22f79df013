"""transformers or vLLM, by vLLM's limits as they are published (vllm/config/lora.py, vllm/lora/peft_helper.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raymb.cli import main
from raymb.errors import SpecError
from raymb.export.serving import VLLM_TORCH, adapter_problems, max_lora_rank
from raymb.inference.choice import choice, installed_vllm

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
        ({"bias": "lora_only"}, ["no biases of adapters (bias lora_only"]),
        ({"r": 513}, ["up to rank 512, and this one has 513"]),
        ({"r": 600, "use_dora": True}, ["DoRA", "600"]),
    ],
)
def test_adapters_that_vllm_cannot_have(changed: dict[str, Any], expected: list[str]) -> None:
    problems = list(adapter_problems(PLAIN | changed))
    assert len(problems) == len(expected)
    assert all(words in problem for words, problem in zip(expected, problems, strict=True))


def test_auto_takes_vllm_where_it_is_and_says_why_it_does_not() -> None:
    assert choice("auto", [], installed="0.26.0", on_gpu=True) == ("vllm", "")
    assert choice("auto", [], installed="0.26.0+cu130", on_gpu=True) == ("vllm", "")
    assert choice("auto", [], installed="0.26.0", on_gpu=False) == ("transformers", "")
    assert choice("auto", ["no DoRA"], installed=None, on_gpu=False) == ("transformers", "")
    assert choice("transformers", ["no DoRA"], installed="0.26.0", on_gpu=True) == ("transformers", "")
    assert choice("vllm", [], installed="0.26.0", on_gpu=False) == ("vllm", "")
    chosen, why = choice("auto", ["no DoRA", "rank 600"], installed="0.26.0", on_gpu=True)
    assert chosen == "transformers" and "no DoRA; rank 600" in why


def test_another_vllm_than_that_of_the_pinned_torch_is_not_used() -> None:
    """Every vLLM asks for one torch: to install another one would replace raymb's."""
    with pytest.raises(SpecError, match=r"--engine vllm: vLLM is not installed\n  pip install vllm==0\.26\.0 "):
        choice("vllm", [], installed=None, on_gpu=False)
    said = r"vLLM 0\.33\.0 is installed, and vLLM 0\.26\.0 is the one for raymb's torch 2\.11\.0"
    with pytest.raises(SpecError, match=rf"--engine vllm: {said}\n  pip install vllm==0\.26\.0"):
        choice("vllm", [], installed="0.33.0", on_gpu=True)
    chosen, why = choice("auto", [], installed="0.33.0", on_gpu=True)
    assert chosen == "transformers" and re.search(said, why)


def test_a_folder_named_vllm_is_no_installed_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_vllm() is None


def test_the_installed_vllm_is_found_with_its_version(vllm: Any) -> None:
    assert installed_vllm() == "0.26.0"


def test_the_vllm_that_is_named_goes_with_the_pinned_torch() -> None:
    """vLLM 0.26.0's metadata: Requires-Dist torch==2.11.0. With another torch, look for its vLLM."""
    pinned = Path(__file__).parents[2] / "requirements/cpu.txt"
    assert re.search(rf"^torch=={re.escape(VLLM_TORCH)} ", pinned.read_text(), re.M)


def test_vllm_that_is_asked_for_in_vain(tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PLAIN | {"peft_type": "LORA", "use_dora": True, "base_model_name_or_path": str(tiny_qwen2)}
    for file in tiny_qwen2.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert main(["generate", str(tmp_path), "--prompt", "a", "--engine", "vllm"]) == 2
    error = capsys.readouterr().err
    assert "--engine vllm: vLLM has no DoRA" in error
    assert "--engine transformers" in error and "raymb export RUN --merge" in error

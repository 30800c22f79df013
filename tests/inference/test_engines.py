"""One engine after the other: what is in memory, where answers end, and what vLLM is asked for."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.data.conftest import in_this_process as in_this_process
from tests.inference.conftest import make_adapter

from raymb.cli import main
from raymb.inference import transformers_engine
from raymb.inference.engine import EngineSettings, Sampling
from raymb.inference.engines import each_engine
from raymb.inference.generate import PromptFormat
from raymb.inference.tuned_model import TunedModel
from raymb.inference.vllm_engine import llm_arguments

PROMPTS = [[5, 9, 40], [7], [80, 81, 82, 83, 84]]
BOTH = pytest.mark.parametrize("kind", ["transformers", "vllm"])


def _answers(model: TunedModel, kind: str, tokens: int = 12, compare: bool = True) -> dict[str, list[list[int]]]:
    tokenizer, settings = PromptFormat(model).tokenizer, EngineSettings(kind)
    engines = each_engine(model, tokenizer, compare, settings, Console(stderr=True))
    return {name: engine.generate(PROMPTS, Sampling(tokens), lambda count: None) for name, engine in engines}


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models were in memory each time that another one was loaded by transformers."""
    counts: list[int] = []
    models: list[Any] = []
    load = transformers_engine.load_hf_model

    def loaded(*words: Any, **settings: Any) -> Any:
        counts.append(sum(reference() is not None for reference in models))
        model = load(*words, **settings)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(transformers_engine, "load_hf_model", loaded)
    return counts


def _evaluate(model: Path, base: Path, *words: str) -> dict[str, Any]:
    rows = [{"prompt": "alpha beta", "completion": " gamma"}, {"prompt": "delta", "completion": " epsilon zeta"}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--dataset", "rows.jsonl", "--max_new_tokens", "6", "--metrics", "loss,exact_match", "--overwrite"]
    assert main(["evaluate", str(model), "--compare", "--base", str(base), *flags, *words]) == 0
    return {
        **json.loads(Path("evaluation/train.json").read_text()),
        "answers": Path("evaluation/train.jsonl").read_text(),
    }


@pytest.mark.usefixtures("in_this_process")
def test_evaluate_has_one_model_at_a_time(
    tiny_qwen2: Path, other_weights: Path, alive: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = _evaluate(other_weights, tiny_qwen2)
    assert alive == [0, 0]
    assert found["scores"]["base"]["loss"] != found["scores"]["tuned"]["loss"]
    assert alive == [0, 0]


@pytest.mark.usefixtures("in_this_process")
def test_evaluate_by_vllm_frees_the_model_that_told_the_loss(
    vllm: Any, tiny_qwen2: Path, other_weights: Path, alive: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every vLLM has its whole share of the memory, which it would not find beside anything else."""
    monkeypatch.chdir(tmp_path)
    by_transformers = _evaluate(other_weights, tiny_qwen2)
    alive.clear()
    by_vllm = _evaluate(other_weights, tiny_qwen2, "--engine", "vllm")
    assert alive == [0, 0]
    assert [one["gpu_memory_utilization"] for one in vllm.LOADED] == [0.92, 0.92]
    assert [one["model"] for one in vllm.LOADED] == [str(tiny_qwen2), str(other_weights)]
    assert vllm.distributed.parallel_state.CLEANED == [0, 0]
    assert (by_vllm["scores"], by_vllm["answers"]) == (by_transformers["scores"], by_transformers["answers"])


def test_generate_has_one_model_at_a_time(tiny_qwen2: Path, other_weights: Path, alive: list[int]) -> None:
    words = ["--prompt", "alpha", "--compare", "--base", str(tiny_qwen2), "--max_new_tokens", "3"]
    assert main(["generate", str(other_weights), *words]) == 0
    assert alive == [0, 0]


def test_an_adapter_and_its_base_are_loaded_once(vllm: Any, tiny_qwen2: Path, adapter: Path, alive: list[int]) -> None:
    model = TunedModel(str(adapter), str(tiny_qwen2), adapter=True)
    by_transformers = _answers(model, "transformers")
    assert alive == [0] and by_transformers["base"] != by_transformers["tuned"]
    assert _answers(model, "vllm") == by_transformers
    assert len(vllm.LOADED) == 1


def _ending_with(directory: Path, ends: list[int]) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


@BOTH
def test_an_answer_ends_where_the_models_settings_say(
    kind: str, vllm: Any, tiny_qwen2: Path, other_weights: Path, tmp_path: Path
) -> None:
    """Each model of a comparison by its own settings, and by the tokenizer's EOS."""
    base, tuned = (shutil.copytree(one, tmp_path / one.name) for one in (tiny_qwen2, other_weights))
    whole = _answers(TunedModel(str(tuned), str(base)), kind)
    of_base, of_tuned = whole["base"][0][3], whole["tuned"][0][3]
    _ending_with(base, [of_base])
    _ending_with(tuned, [of_tuned])
    found = _answers(TunedModel(str(tuned), str(base)), kind)
    for name, end in (("base", of_base), ("tuned", of_tuned)):
        assert found[name] == [one[: one.index(end)] if end in one else one for one in whole[name]]


@BOTH
def test_an_adapters_own_ends_are_those_of_the_tuned_model_alone(
    kind: str, vllm: Any, tiny_qwen2: Path, adapter: Path, tmp_path: Path
) -> None:
    base, tuned = shutil.copytree(tiny_qwen2, tmp_path / "base"), shutil.copytree(adapter, tmp_path / "adapter")
    model = TunedModel(str(tuned), str(base), adapter=True)
    whole = _answers(model, kind)
    of_base, of_tuned = whole["base"][2][2], whole["tuned"][2][2]
    assert of_base != of_tuned
    _ending_with(base, [of_base])
    _ending_with(tuned, [of_tuned])
    found = _answers(model, kind)
    ends = {"base": {of_base}, "tuned": {of_base, of_tuned}}
    for name, answers in whole.items():
        cut = [next((place for place, one in enumerate(tokens) if one in ends[name]), None) for tokens in answers]
        assert found[name] == [tokens[:place] for tokens, place in zip(answers, cut, strict=True)]


@BOTH
def test_special_tokens_that_end_nothing_stay_in_an_answer(
    kind: str, vllm: Any, tiny_qwen2: Path, tmp_path: Path
) -> None:
    """A mark such as <think> may be special, and is part of what the model says."""
    from transformers import AutoTokenizer

    model = shutil.copytree(tiny_qwen2, tmp_path / "model")
    whole = _answers(TunedModel(str(model), None), kind, compare=False)
    token = whole["tuned"][0][2]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"extra_special_tokens": [tokenizer.convert_ids_to_tokens(token)]})
    tokenizer.save_pretrained(model)
    assert token in PromptFormat(TunedModel(str(model), None)).tokenizer.all_special_ids
    assert _answers(TunedModel(str(model), None), kind, compare=False) == whole


@pytest.mark.parametrize(("rank", "largest"), [(2, 8), (9, 16), (17, 32)])
def test_vllm_has_room_for_the_adapters_rank(
    rank: int, largest: int, vllm: Any, tiny_qwen2: Path, tmp_path: Path
) -> None:
    model = TunedModel(str(make_adapter(tiny_qwen2, tmp_path / "adapter", rank)), str(tiny_qwen2), adapter=True)
    assert _answers(model, "vllm") == _answers(model, "transformers")
    assert vllm.LOADED[-1]["max_lora_rank"] == largest


@pytest.mark.parametrize(
    ("config", "refusal"),
    [
        ({"use_dora": True}, "does not yet support DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save being None"),
    ],
)
def test_the_stand_in_refuses_the_adapters_that_raymb_keeps_from_vllm(
    config: dict[str, Any],
    refusal: str,
    vllm: Any,
    tiny_qwen2: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    adapter = make_adapter(tiny_qwen2, tmp_path / "adapter", **config)
    with pytest.raises(ValueError, match=refusal):
        _answers(TunedModel(str(adapter), str(tiny_qwen2), adapter=True), "vllm")
    assert main(["generate", str(adapter), "--prompt", "alpha", "--engine", "vllm"]) == 2
    assert "--engine vllm: vLLM has no" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"max_lora_rank": 2, "enable_lora": True}, "max_lora_rank"),
        ({"max_seq_len": 7}, "unexpected keyword argument 'max_seq_len'"),
        ({"max_model_len": None}, "To serve at least one request"),
        ({"tensor_parallel_size": 3}, "must be divisible by tensor parallel size"),
        ({"gpu_memory_utilization": 1.1}, "Free memory on device"),
    ],
)
def test_the_stand_in_refuses_what_vllm_does(
    settings: dict[str, Any], refusal: str, vllm: Any, tiny_qwen2: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=refusal):
        vllm.LLM(str(tiny_qwen2), **settings)


def test_a_prompt_that_vllm_has_no_room_for_is_refused_with_its_length(
    vllm: Any, tiny_qwen2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("alpha " * 700)
    assert main(["generate", str(tiny_qwen2), "--prompts", str(prompts), "--engine", "vllm"]) == 2
    error = capsys.readouterr().err
    assert "tokens, and vLLM has room for 400 with the answer" in error and "--engine transformers" in error


def test_a_conversation_of_two_models_shares_vllms_memory(
    vllm: Any,
    tiny_qwen2: Path,
    other_weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import io
    import sys

    monkeypatch.setattr(sys, "stdin", io.StringIO("alpha\n"))
    words = ["--compare", "--base", str(tiny_qwen2), "--engine", "vllm", "--max_new_tokens", "3"]
    assert main(["generate", str(other_weights), *words]) == 0
    assert [one["gpu_memory_utilization"] for one in vllm.LOADED] == [0.46, 0.46]
    assert "[tuned]" in capsys.readouterr().out


def test_several_gpus_are_tensor_parallel_in_vllm(tiny_qwen2: Path) -> None:
    model = TunedModel(str(tiny_qwen2), None)
    assert llm_arguments(model, ["tuned"], 4, 1.0)["tensor_parallel_size"] == 4
    assert llm_arguments(model, ["tuned"], 0, 1.0)["tensor_parallel_size"] == 1

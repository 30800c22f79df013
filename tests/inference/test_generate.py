"""Asking tuned models: whom, in which words, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raymb.cli import main
from raymb.errors import DataError, RunDirError, SpecError
from raymb.inference.engine import EngineSettings, Sampling
from raymb.inference.engines import each_engine
from raymb.inference.generate import PromptFormat, read_questions
from raymb.inference.tuned_model import TunedModel, find_tuned_model

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def chat_model(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = shutil.copytree(tiny_qwen2, tmp_path_factory.mktemp("chat") / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    return model


def _run(home: Path, base: Path, export: Path, name: str = "hf", **data: Any) -> Path:
    run = home / "run"
    run.mkdir(parents=True)
    (run / "job.json").write_text(json.dumps({"model_path": str(base), "spec": {}}))
    (run / "data.json").write_text(json.dumps(data))
    shutil.copytree(export, run / name)
    return run


def _by_hand(model: Any, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens, one after the other, without generate()."""
    import torch

    tokens = list(ids)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(ids) :]


def test_whom_a_word_means(tiny_qwen2: Path, adapter: Path, tmp_path: Path) -> None:
    run = _run(tmp_path, tiny_qwen2, adapter, "adapter")
    assert find_tuned_model(str(run)) == TunedModel(str(run / "adapter"), str(tiny_qwen2), run, adapter=True)
    shutil.copytree(tiny_qwen2, run / "hf")  # merged: nothing else to load
    assert find_tuned_model(str(run)) == TunedModel(str(run / "hf"), str(tiny_qwen2), run)
    assert find_tuned_model(str(run / "hf"), "a/b") == TunedModel(str(run / "hf"), "a/b")
    assert find_tuned_model(str(adapter)) == TunedModel(str(adapter), str(tiny_qwen2), adapter=True)
    assert find_tuned_model("owner/name") == TunedModel("owner/name", None)
    job = {"model_path": "some/model", "spec": {"model": {"hf_revision": "c0ffee"}}}
    (run / "job.json").write_text(json.dumps(job))
    assert find_tuned_model(str(run)) == TunedModel(str(run / "hf"), "some/model", run, revision="c0ffee")
    assert find_tuned_model(str(run), "a/b") == TunedModel(str(run / "hf"), "a/b", run)
    copy = shutil.copytree(adapter, tmp_path / "copy")
    config = json.loads((copy / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "some/model", "revision": "c0ffee"}
    (copy / "adapter_config.json").write_text(json.dumps(config))
    assert find_tuned_model(str(copy)) == TunedModel(str(copy), "some/model", None, True, revision="c0ffee")
    for name, problem in ((tmp_path, "has no job.json"), (tmp_path / "x", "is not there")):
        with pytest.raises(RunDirError, match=problem):
            find_tuned_model(str(name))
    shutil.rmtree(run / "hf")
    shutil.rmtree(run / "adapter")
    with pytest.raises(RunDirError, match=r"has neither hf/ nor adapter/\n  write it: raymb export"):
        find_tuned_model(str(run))


def test_in_the_words_of_the_training(tiny_qwen2: Path, chat_model: Path, tmp_path: Path) -> None:
    def text(model: TunedModel, question: Any, **flags: Any) -> str:
        prompt_format = PromptFormat(model, **flags)
        return prompt_format.tokenizer.decode(prompt_format.tokens(question))

    chat, plain = TunedModel(str(chat_model), None), TunedModel(str(tiny_qwen2), None)
    assert text(chat, "alpha") == "<user>alpha<assistant>"
    assert text(chat, "alpha", system="beta") == "<system>beta<user>alpha<assistant>"
    assert text(chat, [{"role": "user", "content": "mu"}]) == "<user>mu<assistant>"
    assert text(chat, "alpha", chat=False) == text(plain, "alpha") == "alpha"
    settings = {"settings": {"shape": {"prompt_template": "Q: {question}\nA:"}}}
    of_pairs = find_tuned_model(str(_run(tmp_path, tiny_qwen2, chat_model, pairs=9, key=settings)))
    assert text(of_pairs, "alpha") == "Q: alpha\nA:"
    assert text(of_pairs, "alpha", chat=True) == "<user>alpha<assistant>"
    for wording, expected in (
        ("alpaca", "### Instruction:\nalpha\n\n### Response:\n"),
        ("question", "Question: alpha\nAnswer:"),
    ):
        of_texts = find_tuned_model(str(_run(tmp_path / wording, tiny_qwen2, chat_model, pairs=9, wording=wording)))
        assert text(of_texts, "alpha").endswith(expected)
    variables = {"system_prompt": "beta", "chat_template_kwargs": '{"name": "mu"}', "day": "2020-01-01"}
    (chat_model / "chat_template.jinja").write_text(TEMPLATE + "{{ name }}{{ strftime_now('%Y') if name }}")
    of_chats = TunedModel(str(chat_model), None, of_pairs.run)
    (of_chats.run / "data.json").write_text(json.dumps({"key": {"settings": variables}}))
    assert text(of_chats, "alpha") == "<system>beta<user>alpha<assistant>mu2020"
    assert text(of_chats, "alpha", system="nu") == "<system>nu<user>alpha<assistant>mu2020"
    own = [{"role": "system", "content": "xi"}, {"role": "user", "content": "mu"}]
    assert text(of_chats, own) == "<system>xi<user>mu<assistant>mu2020"
    (chat_model / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.raises(SpecError, match=r"--chat: .* has no chat template"):
        PromptFormat(plain, chat=True)
    with pytest.raises(SpecError, match="--system is a message"):
        PromptFormat(plain, system="beta")
    with pytest.raises(DataError, match="messages need a chat template"):
        PromptFormat(plain).tokens([{"role": "user", "content": "mu"}])


def test_answers_of_both_models(tiny_qwen2: Path, adapter: Path) -> None:
    """Batched, with prompts of different lengths, as token by token by hand."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = TunedModel(str(adapter), str(tiny_qwen2), adapter=True)
    prompt_format, prompts = PromptFormat(model), [[5, 9, 40], [7], [80, 81, 82, 83, 84]]
    settings = EngineSettings(batch_size=2)
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32).eval()
    expected = {"base": [_by_hand(base, prompt, 6) for prompt in prompts]}
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    expected["tuned"] = [_by_hand(tuned, prompt, 6) for prompt in prompts]
    assert expected["base"] != expected["tuned"]
    told: list[int] = []
    for name, engine in each_engine(model, prompt_format.tokenizer, True, settings, Console(stderr=True)):
        answers = engine.generate(prompts, Sampling(max_new_tokens=6), told.append)
        for answer, wanted in zip(answers, expected[name], strict=True):
            assert answer == (wanted[: wanted.index(0)] if 0 in wanted else wanted)
    assert told == [2, 1, 2, 1]


def test_drawn_answers_repeat_with_the_seed(tiny_qwen2: Path) -> None:
    drawn = {seed: _answers(tiny_qwen2, Sampling(20, temperature=1.0, top_p=0.9, seed=seed)) for seed in (1, 2)}
    assert drawn[1] == _answers(tiny_qwen2, Sampling(20, temperature=1.0, top_p=0.9, seed=1)) != drawn[2]


def _answers(directory: Path, sampling: Sampling) -> list[list[int]]:
    model = TunedModel(str(directory), None)
    engines = each_engine(model, PromptFormat(model).tokenizer, False, EngineSettings(), Console(stderr=True))
    (answers,) = [engine.generate([[5, 9, 40]], sampling, lambda count: None) for _, engine in engines]
    return answers


def test_of_generation_config_only_the_end_of_an_answer_counts(tiny_qwen2: Path, tmp_path: Path) -> None:
    """transformers alone takes its repetition penalty even where it draws nothing, and its top_k where it draws."""
    model = shutil.copytree(tiny_qwen2, tmp_path / "model")
    file = model / "generation_config.json"
    said = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0}
    greedy, drawn = Sampling(12), Sampling(12, temperature=2.0)
    expected = [_answers(tiny_qwen2, greedy), _answers(tiny_qwen2, drawn)]
    file.write_text(json.dumps({"eos_token_id": 0, **said}))
    assert [_answers(model, greedy), _answers(model, drawn)] == expected
    (answer,) = expected[1]
    end = next(place for place, token in enumerate(answer) if place > 2 and token not in answer[:place])
    file.write_text(json.dumps({"eos_token_id": [0, answer[end]], **said}))
    assert _answers(model, drawn) == [answer[:end]]


def test_what_is_done_without_flags_is_said(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(chat_model), "--prompt", "alpha"]
    assert main([*words, "--max_new_tokens", "3"]) == 0
    assert (
        "greedy (the likeliest token each time), at most 3 new tokens; generation_config.json"
        in capsys.readouterr().err
    )
    assert main([*words, "--max_new_tokens", "3", "--temperature", "0.7", "--top_p", "0.9"]) == 0
    assert "drawn at temperature 0.7, top_p 0.9, seed 1234, at most 3 new tokens" in capsys.readouterr().err
    assert main([*words, "--top_p", "0.9"]) == 2
    assert "--top_p 0.9 with --temperature 0" in capsys.readouterr().err


def test_a_file_of_prompts(chat_model: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    messages = [{"role": "user", "content": "mu"}]
    prompts.write_text("\n".join(map(json.dumps, ["alpha", {"prompt": "beta"}, {"messages": messages}])) + "\n\n")
    words = ["generate", str(chat_model), "--prompts", str(prompts), "--output", str(output), "--max_new_tokens", "3"]
    assert main([*words, "--compare", "--base", str(tiny_qwen2)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row.get("prompt") or row["messages"] for row in rows] == ["alpha", "beta", messages]
    assert all(row["base"] == row["tuned"] for row in rows)  # the same weights
    before = output.read_bytes()
    assert main(words) == 2
    assert output.read_bytes() == before


def test_one_prompt_prints_the_answer_alone(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(chat_model), "--prompt", "alpha", "--max_new_tokens", "4"]
    assert main(words) == 0
    alone = capsys.readouterr().out
    assert main([*words, "--compare", "--base", str(chat_model)]) == 0
    both = capsys.readouterr().out
    assert alone.strip() and both.count("base") == both.count("tuned") == 1


def test_a_conversation_with_both_models_says_that_both_stay(
    chat_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("alpha\n"))
    assert main(["generate", str(chat_model), "--compare", "--base", str(chat_model), "--max_new_tokens", "3"]) == 0
    shown = capsys.readouterr()
    assert "both models stay in memory for a conversation" in shown.err
    assert "[base]" in shown.out and "[tuned]" in shown.out


def test_a_conversation(chat_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is asked with what was said before, until /new."""
    asked: list[str] = []
    tokens = PromptFormat.tokens

    def heard(self: PromptFormat, question: Any) -> list[int]:
        asked.append(" ".join(one["role"] for one in question))
        return tokens(self, question)

    monkeypatch.setattr(PromptFormat, "tokens", heard)
    monkeypatch.setattr(sys, "stdin", io.StringIO("alpha\nbeta\n/new\ngamma\n"))
    assert main(["generate", str(chat_model), "--max_new_tokens", "3"]) == 0
    assert asked == ["user", "user assistant user", "user"]
    assert len(capsys.readouterr().out.strip().splitlines()) >= 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "there is no prompt in it"),
        ("{", "line 1: not valid JSON"),
        ('"a"\n{"text": 1}', 'line 2: .* is neither a text, {"prompt": text} nor'),
        ('{"messages": []}', "line 1: .* is neither"),
    ],
)
def test_wrong_prompt_files(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_questions(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare"], "nobody says which model .* was tuned from\n  name it: --base MODEL"),
        (["--engine", "llama.cpp"], "--engine llama.cpp: auto, vllm, transformers is expected"),
        (["--prompts", "x", "--prompt", "y"], "--prompt and --prompts both say what to ask"),
        (["--base", "/nowhere", "--compare"], "/nowhere cannot be loaded"),
    ],
)
def test_refusals(words: list[str], message: str, chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    asks = [] if "--prompt" in words else ["--prompt", "a"]
    assert main(["generate", str(chat_model), *asks, *words]) == 2
    assert re.search(message, capsys.readouterr().err)


OWN_CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import Qwen2Config
class Own(Qwen2Config):
    model_type = "new_family"
"""


def test_code_of_a_run_directory_runs_only_for_the_flag(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who sends a run directory may write into its job.json and spec.json what he likes."""
    model, mark = shutil.copytree(chat_model, tmp_path / "model"), tmp_path / "code has run"
    (model / "own.py").write_text(OWN_CODE.format(mark=str(mark)))
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "new_family", "auto_map": {"AutoConfig": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    run = _run(tmp_path, chat_model, model, path=str(tmp_path), pairs=9)
    says = {"model": {"hf_model_path": str(chat_model), "trust_remote_code": True}}
    (run / "job.json").write_text(json.dumps({"model_path": str(chat_model), "spec": says}))
    spec = {**says, "data": {"dataset": "sample"}, "run": {"storage_path": str(tmp_path)}}
    (run / "spec.json").write_text(json.dumps(spec))
    for words in (["generate", str(run), "--prompt", "alpha"], ["evaluate", str(run), "--dataset", "sample"]):
        assert main([*words, "--engine", "transformers"]) == 2
        assert "add --trust_remote_code to run it" in capsys.readouterr().err
    assert not mark.exists()
    assert PromptFormat(find_tuned_model(str(run), trust_remote_code=True)).tokens("alpha") and mark.exists()

"""`raymb evaluate --benchmarks`: lm-evaluation-harness on exported models, against the same by transformers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raymb.cli import main

QUESTIONS = [
    {"question": "alpha beta", "options": ["gamma", "delta epsilon", "zeta"], "answer": 0},
    {"question": "zeta", "options": ["eta", "theta iota kappa", "mu"], "answer": 1},
    {"question": "iota kappa", "options": ["mu", "nu xi", "alpha"], "answer": 1},
    {"question": "pi rho sigma", "options": ["alpha", "tau", "beta gamma"], "answer": 2},
    {"question": "delta", "options": ["epsilon", "zeta eta theta", "nu"], "answer": 0},
]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the tasks own_choice and own_answer."""
    pytest.importorskip("lm_eval")
    directory = tmp_path / "tasks"
    directory.mkdir()
    monkeypatch.chdir(tmp_path)
    _write(directory, [one["options"][one["answer"]] for one in QUESTIONS])
    return directory


def _write(directory: Path, expected: list[str]) -> None:
    rows = [one | {"expected": text} for one, text in zip(QUESTIONS, expected, strict=True)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data_files": {"test": str(directory / "rows.jsonl")}, "cache_dir": str(directory / "cache")}
    alike = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "fewshot_split": "test"}
    choice = alike | {
        "task": "own_choice",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm", "brier_score")],
    }
    answer = alike | {
        "task": "own_answer",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{expected}}",
        "generation_kwargs": {"max_gen_toks": 6, "until": ["</never>"], "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (choice, answer):
        (directory / f"{task['task']}.yaml").write_text(json.dumps(task))  # JSON is YAML


def _run(model: Path, tasks: Path, *words: str, names: str = "own_choice") -> dict[str, Any]:
    flags = ["--benchmarks", names, "--benchmark_tasks", str(tasks), "--to", "out", "--overwrite"]
    assert main(["evaluate", str(model), *flags, *words]) == 0
    return json.loads(Path("out/benchmarks.json").read_text())


def _likelihoods(model: Any, tokenizer: Any) -> list[list[float]]:
    """Log-likelihood of each option after its question, token by token out of the logits."""
    import torch

    found = []
    for one in QUESTIONS:
        found.append([])
        for option in one["options"]:
            prompt = tokenizer(one["question"])["input_ids"]
            ids = tokenizer(f"{one['question']} {option}")["input_ids"]
            with torch.no_grad():
                chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            found[-1].append(sum(float(chances[at - 1, ids[at]]) for at in range(len(prompt), len(ids))))
    return found


def _by_hand(model: Any, tokenizer: Any) -> dict[str, float]:
    import torch

    likelihoods, right = _likelihoods(model, tokenizer), [one["answer"] for one in QUESTIONS]
    a_character = [
        [one / len(option) for one, option in zip(row, question["options"], strict=True)]
        for row, question in zip(likelihoods, QUESTIONS, strict=True)
    ]
    chances, truth = torch.tensor(likelihoods).softmax(-1), torch.nn.functional.one_hot(torch.tensor(right), 3)
    return {
        "acc": sum(row.index(max(row)) == answer for row, answer in zip(likelihoods, right, strict=True)) / len(right),
        "acc_norm": sum(row.index(max(row)) == to for row, to in zip(a_character, right, strict=True)) / len(right),
        "brier_score": float(((chances - truth) ** 2).sum(-1).mean()),
    }


def _loaded(directory: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def _values(scores: dict[str, Any]) -> dict[str, float]:
    return {metric: one["value"] for metric, one in scores.items()}


def test_log_likelihoods_are_those_of_transformers(
    tasks: Path, tiny_qwen2: Path, other_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _run(other_weights, tasks, "--compare", "--base", str(tiny_qwen2))
    for name, directory in (("base", tiny_qwen2), ("tuned", other_weights)):
        assert _values(result["scores"][name]["own_choice"]) == pytest.approx(_by_hand(*_loaded(directory)), abs=1e-5)
    assert result["scores"]["base"] != result["scores"]["tuned"]
    share = result["scores"]["tuned"]["own_choice"]["acc"]
    assert share["stderr"] == pytest.approx((share["value"] * (1 - share["value"]) / (len(QUESTIONS) - 1)) ** 0.5)
    shown = capsys.readouterr().out
    assert f"{share['value']:.4f} +- {share['stderr']:.4f}" in shown and "base" in shown and "tuned" in shown


def test_an_adapter_and_its_base(tasks: Path, tiny_qwen2: Path, adapter: Path) -> None:
    from peft import PeftModel

    result = _run(adapter, tasks, "--compare")
    base, tokenizer = _loaded(tiny_qwen2)
    expected = {"base": _by_hand(base, tokenizer)}
    expected["tuned"] = _by_hand(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)
    assert expected["base"] != expected["tuned"]
    for name, scores in expected.items():
        assert _values(result["scores"][name]["own_choice"]) == pytest.approx(scores, abs=1e-5)


def test_answers_are_those_of_transformers(tasks: Path, other_weights: Path) -> None:
    """Two of the five questions expect what the model says, greedily, in six tokens."""
    import torch

    model, tokenizer = _loaded(other_weights)
    said = []
    for one in QUESTIONS:
        ids = tokenizer(one["question"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            answer = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        said.append(tokenizer.decode(answer, skip_special_tokens=True))
    _write(tasks, [*said[:2], "never", "never", "never"])
    result = _run(other_weights, tasks, names="own_answer")
    assert _values(result["scores"]["tuned"]["own_answer"]) == {"exact_match": 2 / 5}


def test_limit_examples_and_chat_template_reach_the_harness(tasks: Path, tiny_qwen2: Path, tmp_path: Path) -> None:
    chat = shutil.copytree(tiny_qwen2, tmp_path / "chat")
    (chat / "chat_template.jinja").write_text(TEMPLATE)
    plain, *others = (
        _values(_run(chat, tasks, *words)["scores"]["tuned"]["own_choice"])["brier_score"]
        for words in ([], ["--limit", "2"], ["--num_fewshot", "1"], ["--benchmark_chat"])
    )
    assert len({plain, *others}) == 4


def test_results_are_not_lost(tasks: Path, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out/benchmarks.json").write_text("{}")
    words = ["--benchmarks", "own_choice", "--benchmark_tasks", str(tasks), "--to", "out"]
    assert main(["evaluate", str(tiny_qwen2), *words]) == 2
    assert "benchmarks.json exists" in capsys.readouterr().err


def test_rows_that_cannot_be_had(tasks: Path, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tasks / "rows.jsonl").unlink()
    words = ["--benchmarks", "own_choice", "--benchmark_tasks", str(tasks)]
    assert main(["evaluate", str(tiny_qwen2), *words]) == 2
    assert "error: --benchmarks own_choice: cannot be read (" in capsys.readouterr().err


@pytest.mark.slow  # the harness reads 14,000 YAML files
def test_an_unknown_benchmark_is_refused_with_near_names(
    tasks: Path, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--benchmarks", "own_choice,gsm8c", "--benchmark_tasks", str(tasks)]
    assert main(["evaluate", str(tiny_qwen2), *words]) == 2
    error = capsys.readouterr().err
    assert "--benchmarks gsm8c: lm-evaluation-harness has no such benchmark\n  near names: " in error
    assert "gsm8k" in error


def test_without_the_harness_the_message_says_how_to_install_it(
    tiny_qwen2: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    assert main(["evaluate", str(tiny_qwen2), "--benchmarks", "gsm8k"]) == 2
    error = capsys.readouterr().err
    assert 'lm-evaluation-harness is not installed\n  pip install "raymb[benchmarks]"' in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_fewshot", "3"], "--num_fewshot: it is about benchmarks"),
        (["--benchmark_tasks", "x"], "--benchmark_tasks: it is about benchmarks"),
        (["--benchmark_chat"], "--benchmark_chat: it is about benchmarks"),
        (["--benchmarks", "gsm8k", "--split", "test"], "--split: it is about rows"),
        (["--benchmarks", "gsm8k", "--metrics", "loss"], "--metrics: it is about rows"),
        (["--benchmarks", ","], "--benchmarks: no name is given"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    words: list[str], message: str, tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(tiny_qwen2), *words]) == 2
    assert message in capsys.readouterr().err

"""Scores of a tuned model on held-out rows, against the same by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import in_this_process as in_this_process

from raymb.cli import main
from raymb.errors import SpecError
from raymb.inference import scores

pytestmark = pytest.mark.usefixtures("in_this_process")
ROWS = [
    {"prompt": "alpha beta", "completion": " gamma"},
    {"prompt": "delta", "completion": " epsilon zeta"},
    {"prompt": "eta theta iota", "completion": " kappa"},
]


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def _evaluate(model: Path, rows: Path, *words: str, code: int = 0) -> dict[str, Any]:
    given = ["evaluate", str(model), "--dataset", str(rows), "--max_new_tokens", "4", *words]
    assert main(given) == code
    file = Path("evaluation/train.json")
    return json.loads(file.read_text()) if code == 0 else {}


def _loss_by_hand(directory: Path) -> float:
    """Of the completions and the token that ends them, in torch alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer, total, count = AutoTokenizer.from_pretrained(directory), 0.0, 0
    for row in ROWS:
        prompt, answer = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        with torch.no_grad():
            chances = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(chances[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
        count += len(ids) - len(prompt)
    return total / count


def test_scores_and_files(tiny_qwen2: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _evaluate(tiny_qwen2, rows, "--compare", "--base", str(tiny_qwen2), "--batch_size", "2")
    tuned, base = result["scores"]["tuned"], result["scores"]["base"]
    assert tuned == base
    assert abs(tuned["loss"] - _loss_by_hand(tiny_qwen2)) < 1e-5
    assert tuned["perplexity"] == pytest.approx(math.exp(tuned["loss"]))
    assert (result["samples"], result["asked"]) == (3, 3)
    answers = [json.loads(line) for line in Path("evaluation/train.jsonl").read_text().splitlines()]
    assert sorted(one["expected"] for one in answers) == ["epsilon zeta", "gamma", "kappa"]
    assert tuned["exact_match"] == scores.exact_match([o["tuned"] for o in answers], [o["expected"] for o in answers])
    shown = capsys.readouterr().out
    assert "ROUGE-L F1" in shown and "expected" in shown and f"{tuned['loss']:.4f}" in shown


def test_results_are_not_lost(tiny_qwen2: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _evaluate(tiny_qwen2, rows, "--metrics", "loss", "--limit", "2")
    assert (result["samples"], result["asked"], list(result["scores"]["tuned"])) == (2, 0, ["loss", "perplexity"])
    _evaluate(tiny_qwen2, rows, "--metrics", "loss", code=2)
    assert "train.json exists" in capsys.readouterr().err
    assert _evaluate(tiny_qwen2, rows, "--metrics", "loss", "--overwrite")["samples"] == 3


def test_bertscore_by_a_model_of_this_machine(tiny_qwen2: Path, rows: Path) -> None:
    result = _evaluate(tiny_qwen2, rows, "--metrics", "bertscore", "--bertscore_model", f"{tiny_qwen2}:2")
    assert 0 < result["scores"]["tuned"]["bertscore"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "bleu"], "--metrics bleu: loss, exact_match, rouge, bertscore are known"),
        (["--metrics", "bertscore"], "--metrics bertscore needs a model"),
        (["--split", "test"], "--split test: .* has no such rows\n  there are rows for train"),
        (["--dataset", "/nowhere.jsonl"], "/nowhere.jsonl"),
    ],
)
def test_refusals(
    words: list[str], message: str, tiny_qwen2: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    _evaluate(tiny_qwen2, rows, *words, code=2)
    assert re.search(message, capsys.readouterr().err)
    assert not Path("evaluation").exists()


def test_a_directory_without_rows(tiny_qwen2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_qwen2)]) == 2
    assert "nobody knows its held-out rows\n  name rows: --dataset FILE" in capsys.readouterr().err


def test_the_scores_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, expected = ["the cat  sat", "no"], ["the cat sat", "yes"]
    assert scores.exact_match(answers, expected) == 0.5
    assert scores.rouge(["the cats sat", "no"], expected) == {"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}  # stemmed
    monkeypatch.setattr(scores, "_PACKAGES", {"rouge": "no_such_package"})
    assert scores.default_metrics() == ["loss", "exact_match"]
    with pytest.raises(SpecError, match=r"no-such-package is not installed\n  pip install no-such-package"):
        scores.check_metrics(["rouge"], None)

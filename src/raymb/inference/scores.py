"""Answers against expected ones: exact match, ROUGE and BERTScore, each by its library."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from raymb.errors import SpecError

METRICS = ("loss", "exact_match", "rouge", "bertscore")
_PACKAGES = {"rouge": "rouge_score", "bertscore": "bert_score"}


def default_metrics() -> list[str]:
    """All that need nothing more than what is installed, and no model of their own."""
    return ["loss", "exact_match", *(["rouge"] if _installed("rouge") else [])]


def check_metrics(names: Sequence[str], bertscore_model: str | None) -> None:
    """
    Raises:
        SpecError: an unknown one, one whose package is missing, or BERTScore without a model.
    """
    for name in names:
        if name not in METRICS:
            raise SpecError(f"--metrics {name}: {', '.join(METRICS)} are known")
        if not _installed(name):
            package = _PACKAGES[name].replace("_", "-")
            raise SpecError(f"--metrics {name}: {package} is not installed", f"pip install {package}, or leave it out")
    if "bertscore" in names and bertscore_model is None:
        raise SpecError("--metrics bertscore needs a model", "--bertscore_model roberta-large, or a directory:LAYER")


def _installed(metric: str) -> bool:
    return metric not in _PACKAGES or importlib.util.find_spec(_PACKAGES[metric]) is not None


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Share of answers equal to the expected text, where any white space is one blank."""
    return fmean(answer.split() == wanted.split() for answer, wanted in zip(answers, expected, strict=True))


def rouge(answers: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, -2 and -L, stemmed, by rouge-score (Google Research's)."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    each = [scorer.score(wanted, answer) for answer, wanted in zip(answers, expected, strict=True)]
    return {kind: fmean(one[kind].fmeasure for one in each) for kind in kinds}


def bertscore(answers: Sequence[str], expected: Sequence[str], model: str) -> float:
    """Mean F1 of BERTScore, without rescaling, by bert-score.

    Args:
        model: one that bert-score knows, or any other as NAME:LAYER, the layer whose states are compared.
    """
    from bert_score import BERTScorer

    name, _, layer = model.rpartition(":")
    scorer = BERTScorer(model_type=name, num_layers=int(layer)) if name and layer.isdigit() else BERTScorer(model)
    tokenizer: Any = scorer._tokenizer  # a tokenizer without a limit has a number too large for its own code
    tokenizer.model_max_length = min(tokenizer.model_max_length, scorer._model.config.max_position_embeddings)
    scored: Any = scorer.score(list(answers), list(expected))
    return scored[2].mean().item()

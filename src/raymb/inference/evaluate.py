"""`raymb evaluate`: a tuned model on held-out rows: its loss there, and its answers beside the expected ones."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import track
from rich.table import Table
from rich.text import Text

from raymb.data.samples import Sample, samples_in
from raymb.data.store import RowFile, read_manifest
from raymb.errors import RunDirError, SpecError
from raymb.inference import scores
from raymb.inference.choice import chosen_engine
from raymb.inference.engine import BASE, TUNED, EngineSettings, Sampling
from raymb.inference.engines import each_engine
from raymb.inference.generate import PromptFormat, answers_of
from raymb.inference.transformers_engine import Transformers
from raymb.inference.tuned_model import TunedModel
from raymb.model.shape import read_model_shape
from raymb.spec import RunSpec, load_spec
from raymb.storage.files import write_atomically

_NAMES = {
    "loss": "loss, nats a token",
    "perplexity": "perplexity",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1 F1",
    "rouge2": "ROUGE-2 F1",
    "rougeL": "ROUGE-L F1",
    "bertscore": "BERTScore F1",
}
_EXAMPLES = 3


@dataclass(frozen=True)
class Evaluation:
    """
    Args:
        split: train, validation or test.
        dataset: rows of other origin; None for those of the run.
        metrics: of scores.METRICS.
        limit: so many samples; None for all.
        num_gpus: None chooses.
        to: directory of the results.
    """

    split: str
    dataset: str | None
    metrics: list[str]
    bertscore_model: str | None
    compare: bool
    limit: int | None
    engine: str
    batch_size: int
    sampling: Sampling
    to: Path
    num_gpus: int | None = None
    overwrite: bool = False


def evaluate(model: TunedModel, request: Evaluation, console: Console) -> dict[str, Any]:
    """Score, write SPLIT.json (numbers) and SPLIT.jsonl (an answer a line), and print both in part.

    Raises:
        UserError: no such rows, a metric that cannot be had, or results that are there.
    """
    scores.check_metrics(request.metrics, request.bertscore_model)
    files = request.to / f"{request.split}.json", request.to / f"{request.split}.jsonl"
    keep_results(files, request.overwrite)
    rows = _rows(model, request, console)
    samples = list(islice(samples_in(rows), request.limit))
    prompt_format = PromptFormat(model)
    began = time.monotonic()
    found: dict[str, dict[str, float]] = {name: {} for name in ([BASE] if request.compare else []) + [TUNED]}
    answered = _answered(model, request, prompt_format, samples, found, console)
    result = {
        "model": model.path,
        "base": model.base,
        "rows": request.dataset or str(model.data["path"]),
        "split": request.split,
        "samples": len(samples),
        "trained_tokens": sum(sum(sample.trained[1:]) for sample in samples),
        "asked": len(answered),
        "sampling": asdict(request.sampling),
        "seconds": round(time.monotonic() - began, 1),
        "scores": found,
    }
    request.to.mkdir(parents=True, exist_ok=True)
    write_atomically(files[0], json.dumps(result, indent=2) + "\n")
    write_atomically(files[1], "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answered))
    _print(result, answered, Console(highlight=False))
    console.print(f"{files[0]}, {files[1].name}", highlight=False, soft_wrap=True)
    return result


def keep_results(files: Sequence[Path], overwrite: bool) -> None:
    """
    Raises:
        RunDirError: a file is there, and is not to be replaced.
    """
    for file in files:
        if file.exists() and not overwrite:
            raise RunDirError(f"{file} exists", "ways out: --to ANOTHER_DIR, --overwrite to replace it")


def _rows(model: TunedModel, request: Evaluation, console: Console) -> RowFile:
    directory = Path(model.data.get("path", ""))
    if request.dataset is not None:
        from raymb.data.prepare import prepare

        path = model.path if not model.adapter else model.base_files()
        directory = prepare(
            _spec(model, request.dataset),
            path,
            chat=True,
            sample_multiple=1,
            vocab_size=read_model_shape(path).vocab_size,
            console=console,
        ).path
    elif not model.data:
        raise SpecError(f"{model.path} is no run's: nobody knows its held-out rows", "name rows: --dataset FILE")
    manifest = read_manifest(directory)
    if manifest is None:
        raise RunDirError(f"{directory} has no prepared rows any more", "name rows: --dataset FILE")
    if request.split not in manifest["parts"]:
        there = ", ".join(manifest["parts"])
        raise SpecError(f"--split {request.split}: {directory} has no such rows", f"there are rows for {there}")
    if manifest.get("images"):
        raise SpecError(
            f"--split {request.split}: its rows have images, and raymb evaluate has prompts of text only",
            "name rows of text: --dataset FILE; every export is verified on rows with images anyway",
        )
    return RowFile(directory / f"{request.split}.arrow")


def _spec(model: TunedModel, dataset: str) -> RunSpec:
    """How other rows are read: as the run read its own."""
    former = model.run and model.run / "spec.json"
    files = [former] if former and former.exists() else []
    spec = load_spec({"hf_model_path": model.path, "dataset": dataset}, files)
    alone = {"validation_dataset": None, "test_dataset": None, "validation_split": 0.0, "test_split": 0.0}
    return spec.changed(
        data={**alone, "packing": False},
        # The revision is the base's, and whether its code may run the user says anew.
        model={"hf_revision": None, "trust_remote_code": model.trust_remote_code},
    )


def _answered(
    model: TunedModel,
    request: Evaluation,
    prompt_format: PromptFormat,
    samples: list[Sample],
    found: dict[str, dict[str, float]],
    console: Console,
) -> list[dict[str, Any]]:
    """One object for each sample that is a question and an answer; the scores go into `found`."""
    pairs = [sample.last_answer() for sample in samples]
    pairs = [(prompt, answer) for prompt, answer in pairs if len(prompt) > 1]  # else the whole text is trained
    settings = chosen_engine(request.engine, model, console, request.num_gpus, request.batch_size)
    asked = [prompt for prompt, _ in pairs] if request.metrics != ["loss"] else []
    if asked:
        console.print(str(request.sampling), style="dim", highlight=False, soft_wrap=True)
    answers: dict[str, list[str]] = {}
    for one in _engines_in_turn(settings, "loss" in request.metrics, bool(asked)):
        for name, engine in each_engine(model, prompt_format.tokenizer, request.compare, one, console):
            if isinstance(engine, Transformers) and "loss" in request.metrics:
                found[name] |= losses(engine, samples, f"{name} model reads", console)
            if asked and one == settings:
                answers[name] = answers_of(name, engine, prompt_format, asked, request.sampling, console)
    expected = [prompt_format.text(answer) for _, answer in pairs]
    for name, texts in answers.items():
        found[name] |= _scored(texts, expected, request)
    prompts = [prompt_format.text(prompt) for prompt, _ in pairs]
    return [
        {
            "prompt": prompts[index],
            "expected": expected[index],
            **{name: texts[index] for name, texts in answers.items()},
        }
        for index in range(len(asked))
    ]


def _engines_in_turn(settings: EngineSettings, loss: bool, answers: bool) -> list[EngineSettings]:
    """vLLM tells no loss: transformers does before it."""
    reads = [replace(settings, kind="transformers")] if loss else []
    return list(dict.fromkeys([*reads, *([settings] if answers else [])]))


def _scored(answers: Sequence[str], expected: Sequence[str], request: Evaluation) -> dict[str, float]:
    found: dict[str, float] = {}
    if "exact_match" in request.metrics:
        found["exact_match"] = scores.exact_match(answers, expected)
    if "rouge" in request.metrics:
        found |= scores.rouge(answers, expected)
    if "bertscore" in request.metrics and request.bertscore_model:
        found["bertscore"] = scores.bertscore(answers, expected, request.bertscore_model)
    return found


def losses(engine: Transformers, samples: Sequence[Sample], words: str, console: Console) -> dict[str, float]:
    """Mean loss of the trained tokens, and its exponential, as the training counts it.

    Returns:
        {"loss": nats a token, "perplexity": its exponential}
    """
    import torch
    from torch.nn.functional import cross_entropy

    order = sorted(samples, key=lambda sample: len(sample.ids))
    batches = [order[first : first + engine.batch_size] for first in range(0, len(order), engine.batch_size)]
    total, count = 0.0, 0
    with engine.ready() as model:
        for batch in track(batches, words, console=console, transient=True):
            longest = len(batch[-1].ids)

            def padded(lists: list[list[int]], longest: int = longest) -> torch.Tensor:
                return torch.tensor([one + [0] * (longest - len(one)) for one in lists], device=model.device)

            ids, targets = padded([one.ids for one in batch]), padded([one.trained for one in batch])[:, 1:].bool()
            mask = padded([[1] * len(one.ids) for one in batch])
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            total += cross_entropy(logits[targets].float(), ids[:, 1:][targets], reduction="sum").item()
            count += int(targets.sum())
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}


def _print(result: dict[str, Any], answered: list[dict[str, Any]], console: Console) -> None:
    models = list(result["scores"])
    for one in answered[:_EXAMPLES]:
        console.print(Panel(Text(one["prompt"]), title="prompt", title_align="left"))
        for name in ("expected", *models):
            console.print(Panel(Text(one[name]), title=name, title_align="left"))
    console.print(f"{result['samples']:,} {result['split']} samples, {result['trained_tokens']:,} trained tokens")
    table = Table()
    table.add_column("score")
    for name in models:
        table.add_column(name, justify="right")
    for key, words in _NAMES.items():
        if key in result["scores"][TUNED]:
            table.add_row(words, *(f"{result['scores'][name][key]:.4f}" for name in models))
    console.print(table)

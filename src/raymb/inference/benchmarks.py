"""`raymb evaluate --benchmarks`: a tuned model, and its base, on benchmarks of EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from raymb.errors import DataError, SpecError
from raymb.inference.choice import chosen_engine
from raymb.inference.engine import TUNED
from raymb.inference.engines import each_engine
from raymb.inference.evaluate import keep_results
from raymb.inference.generate import PromptFormat
from raymb.inference.transformers_engine import Transformers
from raymb.inference.tuned_model import TunedModel
from raymb.storage.files import write_atomically

INSTALL = 'pip install "raymb[benchmarks]"'
Scores = dict[str, dict[str, dict[str, float | None]]]
"""Benchmark, then metric, to {"value": ..., "stderr": ...}."""


@dataclass(frozen=True)
class Benchmarks:
    """
    Args:
        names: tasks, groups or tags of the harness.
        tasks: a directory of tasks of the user's own, in its YAML.
        chat: whether questions go into the chat template.
        num_fewshot: None leaves each its own.
        limit: so many questions of each; None for all.
        num_gpus: None chooses.
        to: directory of the results.
    """

    names: list[str]
    tasks: Path | None
    chat: bool
    num_fewshot: int | None
    compare: bool
    limit: int | None
    engine: str
    num_gpus: int | None
    batch_size: int
    to: Path
    overwrite: bool = False


def run_benchmarks(model: TunedModel, request: Benchmarks, console: Console) -> dict[str, Any]:
    """Score, write benchmarks.json, and print a table.

    Raises:
        UserError: the harness is not installed, a benchmark cannot be had, or results are there.
    """
    file = request.to / "benchmarks.json"
    _check(request, file)
    prompt_format = PromptFormat(model, chat=True if request.chat else None)
    with console.status("reading the benchmarks"), _quiet():
        manager = _task_manager(request)
        tasks = _loaded(manager, request.names)
    began = time.monotonic()
    found: dict[str, Scores] = {}
    settings = chosen_engine("transformers", model, console, request.num_gpus, request.batch_size)
    for name, engine in each_engine(model, prompt_format.tokenizer, request.compare, settings, console):
        console.print(f"{name} model: {', '.join(request.names)}", style="dim", highlight=False)
        assert isinstance(engine, Transformers)
        with _quiet():
            found[name] = _scored(engine, tasks, manager, request)
    result = {
        "model": model.path,
        "base": model.base,
        "split": "benchmarks",
        "benchmarks": request.names,
        "num_fewshot": request.num_fewshot,
        "chat_template": request.chat,
        "limit": request.limit,
        "lm_eval": importlib.metadata.version("lm_eval"),
        "seconds": round(time.monotonic() - began, 1),
        "scores": found,
    }
    request.to.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(result, indent=2) + "\n")
    _print(found, Console(highlight=False))
    console.print(str(file), highlight=False, soft_wrap=True)
    return result


def _check(request: Benchmarks, file: Path) -> None:
    if not request.names:
        raise SpecError("--benchmarks: no name is given", "--benchmarks gsm8k,mmlu")
    if importlib.util.find_spec("lm_eval") is None:
        raise SpecError("--benchmarks: lm-evaluation-harness is not installed", INSTALL)
    if request.engine == "vllm":
        raise SpecError("--engine vllm: benchmarks are computed by transformers", "leave --engine out")
    if request.tasks is not None and not request.tasks.is_dir():
        raise SpecError(f"--benchmark_tasks {request.tasks}: no such directory", "give the directory of the YAML files")
    keep_results([file], request.overwrite)


def _task_manager(request: Benchmarks) -> Any:
    """The harness's index of tasks: of the user's own alone where that has all names, since all 14,000 take seconds.

    Raises:
        SpecError: a name is in none.
    """
    from lm_eval.tasks import TaskManager

    own = request.tasks and TaskManager(include_path=str(request.tasks), include_defaults=False)
    if own and set(request.names) <= set(own.all_tasks):
        return own
    manager = TaskManager(include_path=str(request.tasks) if request.tasks else None)
    known = manager.all_tasks
    for name in request.names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5)
            where = "lm_eval ls tasks lists them all; your own: --benchmark_tasks DIR"
            raise SpecError(
                f"--benchmarks {name}: lm-evaluation-harness has no such benchmark",
                f"near names: {', '.join(near)}; {where}" if near else where,
            )
    return manager


def _loaded(manager: Any, names: list[str]) -> list[Any]:
    """The tasks and groups, with their rows, which come from the hub.

    Raises:
        DataError: a task cannot be made.
    """
    try:
        loaded = manager.load(names)
    except Exception as error:  # of datasets, of the hub, of a package that the task wants, of the task's own code
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"--benchmarks {','.join(names)}: cannot be read ({type(error).__name__}: {reason})",
            "a benchmark's rows come from the hub, and some need packages of their own",
        ) from None
    within = {child for children in loaded["group_map"].values() for child in children}
    return [one for kind in ("tasks", "groups") for name, one in loaded[kind].items() if name not in within]


def _scored(engine: Transformers, tasks: list[Any], manager: Any, request: Benchmarks) -> Scores:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models import huggingface

    wrapped: Any = huggingface.HFLM  # its registry hides its signature
    with engine.ready() as model:
        results: Any = simple_evaluate(
            wrapped(pretrained=model, tokenizer=engine.tokenizer, batch_size=request.batch_size),
            tasks=tasks,
            num_fewshot=request.num_fewshot,
            limit=request.limit,
            apply_chat_template=request.chat,
            task_manager=manager,
            log_samples=False,
        )
    return {task: dict(_metrics(values)) for task, values in results["results"].items()}


def _metrics(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, float | None]]]:
    """The harness has "acc,none" and "acc_stderr,none", of its filter `none`."""
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = values.get(f"{metric}_stderr,{kind}")  # "N/A" where the metric has none
            spread = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
            yield metric if kind == "none" else f"{metric}, {kind}", {"value": float(value), "stderr": spread}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log, which tells every setting; its warnings and bars stay."""
    import logging

    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _print(found: dict[str, Scores], console: Console) -> None:
    table = Table()
    for column in ("benchmark", "score"):
        table.add_column(column)
    for name in found:
        table.add_column(name, justify="right")
    for task, metrics in found[TUNED].items():
        for metric in metrics:
            table.add_row(task, metric, *(_cell(scores[task][metric]) for scores in found.values()))
    console.print(table)


def _cell(score: dict[str, float | None]) -> str:
    spread = "" if score["stderr"] is None else f" +- {score['stderr']:.4f}"
    return f"{score['value']:.4f}{spread}"

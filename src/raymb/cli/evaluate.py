"""`raymb evaluate`: score a tuned model on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raymb.cli.generate import ENGINES, NUM_GPUS, RUN_OR_DIR, TRUST


def command(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_DIR", help=RUN_OR_DIR)],
    split: Annotated[
        str | None, typer.Option(metavar="train|validation|test", help="Which rows; default: validation.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Other rows than the run's, as finetune takes them; all of a file are `train`.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="loss,exact_match,rouge,bertscore; default: those that are installed."),
    ] = None,
    bertscore_model: Annotated[
        str | None, typer.Option("--bertscore_model", metavar="NAME[:LAYER]", help="Model of BERTScore.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Score the base model, too.")] = False,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The base model, where it is not known.")] = None,
    benchmarks: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="Benchmarks of lm-evaluation-harness instead of rows: gsm8k,mmlu."),
    ] = None,
    benchmark_tasks: Annotated[
        Path | None,
        typer.Option("--benchmark_tasks", metavar="DIR", help="Benchmarks of your own: the harness's YAML files."),
    ] = None,
    benchmark_chat: Annotated[
        bool, typer.Option("--benchmark_chat", help="Put a benchmark's questions into the chat template.")
    ] = False,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num_fewshot", min=0, help="Examples before a benchmark's question; default: its own number."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples, of each benchmark.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max_new_tokens", min=1, help="Longest answer to a row; default: 128.")
    ] = None,
    engine: Annotated[str, typer.Option(metavar="|".join(ENGINES), help="auto: vLLM if installed, on a GPU.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Samples at once (transformers).")] = 8,
    num_gpus: Annotated[str, typer.Option("--num_gpus", metavar="auto|N", help=NUM_GPUS)] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust_remote_code", help=TRUST)] = False,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Results; default: RUN/evaluation.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
) -> int:
    """Score a tuned model on held-out rows, and write its answers beside the expected ones; or on benchmarks.

    Examples:
      raymb evaluate raymb-runs/my-run --compare --limit 100
      raymb evaluate raymb-runs/my-run --dataset questions.jsonl --metrics loss,exact_match
      raymb evaluate raymb-runs/my-run --compare --benchmarks gsm8k,mmlu
    """
    from rich.console import Console

    from raymb.errors import SpecError
    from raymb.inference.gpus import asked_gpus
    from raymb.inference.tuned_model import find_tuned_model

    if engine not in ENGINES:
        raise SpecError(f"--engine {engine}: {', '.join(ENGINES)} is expected")
    found = find_tuned_model(model, base, trust_remote_code)
    console = Console(stderr=True)
    alike = {
        "compare": compare,
        "limit": limit,
        "engine": engine,
        "num_gpus": asked_gpus(num_gpus),
        "batch_size": batch_size,
        "to": to or (found.run or Path()) / "evaluation",
        "overwrite": overwrite,
    }
    if benchmarks is not None:
        from raymb.inference.benchmarks import Benchmarks, run_benchmarks

        of_rows = ("split", split), ("dataset", dataset), ("metrics", metrics), ("max_new_tokens", max_new_tokens)
        _refuse(
            *of_rows, ("bertscore_model", bertscore_model), because="it is about rows, and --benchmarks has its own"
        )
        names = [name.strip() for name in benchmarks.split(",") if name.strip()]
        run_benchmarks(found, Benchmarks(names, benchmark_tasks, benchmark_chat, num_fewshot, **alike), console)
        return 0
    of_benchmarks = ("benchmark_tasks", benchmark_tasks), ("benchmark_chat", benchmark_chat or None)
    _refuse(*of_benchmarks, ("num_fewshot", num_fewshot), because="it is about benchmarks: --benchmarks NAME,...")
    from raymb.inference.engine import Sampling
    from raymb.inference.evaluate import Evaluation, evaluate
    from raymb.inference.scores import default_metrics

    request = Evaluation(
        split=split or ("train" if dataset else "validation"),
        dataset=dataset,
        metrics=metrics.split(",") if metrics else default_metrics(),
        bertscore_model=bertscore_model,
        sampling=Sampling(max_new_tokens or 128),
        **alike,
    )
    evaluate(found, request, console)
    return 0


def _refuse(*flags: tuple[str, object], because: str) -> None:
    from raymb.errors import SpecError

    for name, value in flags:
        if value is not None:
            raise SpecError(f"--{name}: {because}", "leave it out")

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
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer.")] = 128,
    engine: Annotated[str, typer.Option(metavar="|".join(ENGINES), help="auto: vLLM if installed, on a GPU.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Samples at once (transformers).")] = 8,
    num_gpus: Annotated[str, typer.Option("--num_gpus", metavar="auto|N", help=NUM_GPUS)] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust_remote_code", help=TRUST)] = False,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Results; default: RUN/evaluation.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
) -> int:
    """Score a tuned model on held-out rows, and write its answers beside the expected ones.

    Examples:
      raymb evaluate raymb-runs/my-run --compare --limit 100
      raymb evaluate raymb-runs/my-run --dataset questions.jsonl --metrics loss,exact_match
    """
    from rich.console import Console

    from raymb.errors import SpecError
    from raymb.inference.engine import Sampling
    from raymb.inference.evaluate import Evaluation, evaluate
    from raymb.inference.gpus import asked_gpus
    from raymb.inference.scores import default_metrics
    from raymb.inference.tuned_model import find_tuned_model

    if engine not in ENGINES:
        raise SpecError(f"--engine {engine}: {', '.join(ENGINES)} is expected")
    found = find_tuned_model(model, base, trust_remote_code)
    request = Evaluation(
        split=split or ("train" if dataset else "validation"),
        dataset=dataset,
        metrics=metrics.split(",") if metrics else default_metrics(),
        bertscore_model=bertscore_model,
        compare=compare,
        limit=limit,
        engine=engine,
        num_gpus=asked_gpus(num_gpus),
        batch_size=batch_size,
        sampling=Sampling(max_new_tokens),
        to=to or (found.run or Path()) / "evaluation",
        overwrite=overwrite,
    )
    evaluate(found, request, Console(stderr=True))
    return 0

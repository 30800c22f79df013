"""`raymb generate`: generate text with a tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ENGINES = ("auto", "vllm", "transformers")
TRUST = "Run Python code that comes with the model; a run directory's word for it does not count."
NUM_GPUS = "auto: as few as hold the model. transformers puts layers on each, vLLM a part of every layer."
RUN_OR_DIR = "A run directory, a Hugging Face directory, a PEFT directory, or a hub id."


def command(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_DIR", help=RUN_OR_DIR)],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A question; repeatable.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='A question a line; .jsonl: {"prompt": ...} or {"messages": [...]} a line.'),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the base model's answers, too.")] = False,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The base model, where it is not known.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no_chat", help="Use the chat template or not; default: as the rows were.", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top_p", min=0.01, max=1, help="Draw from the likeliest tokens.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 1234,
    engine: Annotated[str, typer.Option(metavar="|".join(ENGINES), help="auto: vLLM if installed, on a GPU.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Prompts at once (transformers).")] = 8,
    num_gpus: Annotated[str, typer.Option("--num_gpus", metavar="auto|N", help=NUM_GPUS)] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust_remote_code", help=TRUST)] = False,
    output: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Write answers there.")] = None,
) -> int:
    """Answer prompts with a tuned model. Without --prompt and --prompts: a conversation.

    Examples:
      raymb generate raymb-runs/my-run --prompt "What is AI?" --compare
      raymb generate raymb-runs/my-run --prompts questions.jsonl --output answers.jsonl
    """
    from rich.console import Console

    from raymb.errors import SpecError
    from raymb.inference.engine import Sampling
    from raymb.inference.generate import generate, read_questions
    from raymb.inference.gpus import asked_gpus
    from raymb.inference.tuned_model import find_tuned_model

    if engine not in ENGINES:
        raise SpecError(f"--engine {engine}: {', '.join(ENGINES)} is expected")
    if prompt and prompts:
        raise SpecError("--prompt and --prompts both say what to ask", "give one of them")
    found = find_tuned_model(model, base, trust_remote_code)
    generate(
        found,
        read_questions(prompts) if prompts else list(prompt) if prompt else None,
        Sampling(max_new_tokens, temperature, top_p, seed),
        compare=compare,
        engine=engine,
        num_gpus=asked_gpus(num_gpus),
        chat=chat,
        system=system,
        batch_size=batch_size,
        output=output,
        console=Console(stderr=True),
    )
    return 0

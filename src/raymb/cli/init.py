"""`raymb init`: four questions, and the YAML of a first run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

_PEFT = ("none", "lora", "dora")


def command(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The YAML to write.")] = Path("run.yaml"),
    hf_model_path: Annotated[
        str | None, typer.Option("--hf_model_path", metavar="TEXT", help="Model: a hub id or a local directory.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Rows to train on, as finetune takes them.")] = None,
    num_workers: Annotated[int | None, typer.Option("--num_workers", min=1, help="Workers, one GPU each.")] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Their kind, such as h100-80gb; cpu: workers without a GPU.")
    ] = None,
    peft: Annotated[
        str | None, typer.Option("--peft", metavar="|".join(_PEFT), help="Train adapters, or (none) the whole model.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> int:
    """Ask for model, data, machine and LoRA or full, and write a commented YAML that has been planned. A flag answers
    its question.

    Examples:
      raymb init
      raymb init run.yaml --hf_model_path Qwen/Qwen2.5-7B --dataset rows.jsonl --num_workers 8 \\
          --gpu h100-80gb --peft lora
    """
    from raymb.cli.first_config import first_yaml
    from raymb.errors import SpecError

    if file.exists() and not overwrite:
        raise SpecError(f"{file} is there already", "name another file (raymb init FILE), or --overwrite")
    answers = {"hf_model_path": hf_model_path, "dataset": dataset, "peft": peft, **_machine_of_flags(num_workers, gpu)}
    answers = _asked(answers)
    _check_peft(answers["peft"])
    flags, not_planned = _planned(answers)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(first_yaml(flags, str(file)), encoding="utf-8")
    if not_planned:
        print(f"not planned: {not_planned}", file=sys.stderr)
    print(
        f"{file} is written\n  raymb finetune --config {file} --dry_run   checks model, data and layout\n"
        f"  raymb finetune --config {file}             trains"
    )
    return 0


def _machine_of_flags(num_workers: int | None, gpu: str | None) -> dict[str, Any]:
    """num_workers, gpu and backend; num_workers None where the machine is to be asked for."""
    if num_workers is None and gpu is None:
        return {"num_workers": None}
    return _machine(f"{num_workers or (2 if gpu == 'cpu' else 1)} {gpu or ''}")


def _machine(text: str) -> dict[str, Any]:
    """`8 h100-80gb`, `8xh100-80gb`, `8`, `h100-80gb` or `cpu`.

    Raises:
        SpecError: it is none of them.
    """
    from raymb.errors import SpecError
    from raymb.plan.gpus import gpu_named

    read = re.fullmatch(r"([1-9]\d*)?(?:\s*x\s*|\s+)?([a-z][\w-]*)?", text.strip().lower())
    if read is None or not any(read.groups()):
        raise SpecError(f"{text}: a number of GPUs and their kind is expected, such as 8 h100-80gb, or cpu")
    count, kind = read.groups()
    if kind == "cpu":
        return {"num_workers": int(count or 2), "gpu": None, "backend": "cpu"}
    return {"num_workers": int(count or 1), "gpu": gpu_named(kind).name if kind else None, "backend": "cuda"}


def _here() -> str:
    """This machine in the same words."""
    count = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return str(count) if count else "cpu"


def _check_peft(word: str) -> dict[str, Any]:
    """
    Raises:
        SpecError: it is no way to train.
    """
    from raymb.errors import SpecError

    kind = {"full": "none"}.get(word, word)
    if kind not in _PEFT:
        raise SpecError(f"--peft {word}: {', '.join(_PEFT)} is expected")
    return {"peft": kind}


def _asked(answers: dict[str, Any]) -> dict[str, Any]:
    """The answers with those of the questions that no flag has answered.

    Raises:
        SpecError: there is one, and no terminal to ask it at.
    """
    from raymb.errors import SpecError

    questions: dict[str, tuple[str, str, Callable[[str], dict[str, Any]]]] = {
        "hf_model_path": ("Model, a hub id or a directory", "Qwen/Qwen2.5-0.5B", lambda text: {"hf_model_path": text}),
        "dataset": ("Data, a file or a hub id", "squad", lambda text: {"dataset": text}),
        "num_workers": ("Machine, such as 8 h100-80gb, or cpu", _here(), _machine),
        "peft": ("lora, dora or full", "lora", _check_peft),
    }
    open_ones = [name for name in questions if answers[name] is None]
    if open_ones and not sys.stdin.isatty():
        flags = ", ".join(f"--{name}" for name in open_ones)
        raise SpecError(f"there is no terminal to ask at, and nothing says {flags}", "give each as a flag")
    for name in open_ones:
        answers |= _ask(*questions[name])
    return answers


def _ask(question: str, default: str, read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Until the answer is one that can be read."""
    from raymb.errors import SpecError

    while True:
        try:
            return read(input(f"{question} [{default}]: ").strip() or default)
        except SpecError as error:
            print(error, file=sys.stderr)
        except EOFError:
            raise typer.Abort from None


def _planned(answers: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The flags of the YAML, and why they could not be planned; "" where the plan is printed.

    Raises:
        UserError: these answers cannot train.
    """
    from raymb.cli.first_config import first_flags
    from raymb.driver.preflight import checked_shape, local_backend, local_gpu
    from raymb.errors import ModelOutOfReach
    from raymb.plan import make_plan
    from raymb.plan.table import print_plan
    from raymb.spec import load_spec

    flags = first_flags(answers, None)
    spec = load_spec(flags)
    try:
        shape = checked_shape(spec, "config")
    except ModelOutOfReach as error:
        return flags, error.message
    flags = first_flags(answers, shape.max_position_embeddings)
    spec = load_spec(flags)
    print_plan(make_plan(spec, shape, backend=local_backend(spec), gpu=local_gpu(spec)), shape, spec)
    return flags, ""

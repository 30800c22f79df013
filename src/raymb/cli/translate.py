"""`raymb translate`: a config of another tool as YAML for --config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

KINDS = "oumi|ms-swift|llama-factory|axolotl|trl|nemo-rl|bridge"
"""Of raymb.spec.other_tools.FILES, which other commands need not import."""


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other tool's YAML, or the script that starts it.")],
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar=KINDS, help="Whose file it is; default: found by its keys."),
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num_workers", min=1, help="GPUs of the run, where the file does not say how many.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE.yaml", help="Write there.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> int:
    """Turn a config of Oumi, ms-swift, LLaMA-Factory, axolotl, TRL, NeMo-RL or Megatron-Bridge (run_config.yaml) into
    raymb's YAML. Each value names the key that it comes from; each key that has no equal is a comment with the reason.

    Examples:
      raymb translate lora-8b.yml --num_workers 8 --output run.yaml
      raymb translate run_config.yaml --from bridge
    """
    from raymb.errors import SpecError
    from raymb.spec.other_tools.translating import translate_file

    text = translate_file(file, from_, num_workers)
    if output is None:
        print(text, end="")
        return 0
    if output.exists() and not overwrite:
        raise SpecError(f"--output {output}: is there already", "give another name, or --overwrite")
    output.write_text(text, encoding="utf-8")
    print(output)
    return 0

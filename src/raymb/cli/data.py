"""`raymb data prepare` and `raymb data inspect`: the rows before a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from raymb.spec.sections import RunSpec

if TYPE_CHECKING:
    from raymb.data.prepare import Prepared

_JSON = typer.Option(False, "--json", help="Print numbers as one JSON object, nothing else.", show_default=False)


def prepare(spec: RunSpec, json: bool = _JSON) -> int:
    """Read, check, tokenize and pack the rows, so that finetune with the same flags starts at once.

    Examples:
      raymb data prepare --hf_model_path Qwen/Qwen2.5-0.5B --dataset rows.jsonl --seq_length 2048
      raymb data prepare --config run.yaml --json
    """
    from raymb.model.initial import at_commit

    prepared = _prepared(at_commit(spec), any_layout=False)
    print(_as_json(prepared) if json else prepared.summary())
    return 0


def inspect(
    spec: RunSpec,
    json: bool = _JSON,
    samples: int = typer.Option(3, "--samples", min=0, help="Samples to show."),
    part: str = typer.Option("train", "--part", metavar="train|validation|test", help="Which rows."),
    ids: bool = typer.Option(False, "--ids", help="Show token ids, too.", show_default=False),
    plot: str = typer.Option("", "--plot", metavar="FILE.png", help="Write the lengths as a picture."),
) -> int:
    """Show rows as the model will see them, with the trained tokens marked, and what they are like in numbers.

    Examples:
      raymb data inspect --hf_model_path Qwen/Qwen2.5-0.5B --dataset rows.jsonl --samples 2
      raymb data inspect --config run.yaml --part validation --ids
    """
    from raymb.data import inspection
    from raymb.model.initial import at_commit

    spec = at_commit(spec)
    prepared = _prepared(spec, any_layout=True)
    inspection.check_part(prepared, part)
    if plot:
        inspection.write_plot(prepared, Path(plot))
    if json:
        print(_as_json(prepared))
    else:
        inspection.print_inspection(prepared, spec, part, samples, ids)
    return 0


def _prepared(spec: RunSpec, *, any_layout: bool) -> Prepared:
    """
    Args:
        any_layout: also where finetune would refuse the layout.
    """
    from rich.console import Console

    from raymb.driver.preflight import checked_shape, multiple_without_a_run, prepared_rows, say_what_is_trained_on

    console = Console(stderr=True)
    shape = checked_shape(spec)
    sample_multiple = multiple_without_a_run(spec, shape, any_layout)
    say_what_is_trained_on(spec, console)
    return prepared_rows(spec, shape, sample_multiple, console)


def _as_json(prepared: Prepared) -> str:
    from json import dumps

    manifest = prepared.manifest
    train = manifest["parts"]["train"]
    names = ("rows", "packed_rows", "packing_efficiency", "tokens", "trained_tokens", "truncated_rows", "dropped_rows")
    numbers = {name: train[name] for name in names}
    return dumps({**numbers, "path": str(prepared.path), "parts": manifest["parts"], "notes": manifest["notes"]})

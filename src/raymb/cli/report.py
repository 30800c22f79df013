"""`raymb runs` and `raymb report`: what runs there are, and what one was like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_RUN = "Run directory, or its URI: STORAGE_PATH/EXPERIMENT_NAME."


SORTS = ("when", "name", "state", "step", "loss", "validation", "speed")


def runs(
    storage: Annotated[
        str | None, typer.Argument(metavar="[STORAGE_PATH]", help="The same as --storage_path.", show_default=False)
    ] = None,
    storage_path: Annotated[
        str | None,
        typer.Option("--storage_path", metavar="PATH|URI", help="What holds the runs; default: raymb-runs."),
    ] = None,
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="|".join(SORTS), help="The newest, furthest, fastest or least loss comes last."),
    ] = "when",
    watch: Annotated[bool, typer.Option("--watch", help="Show the list until Ctrl-C, as it changes.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array, nothing else.")] = False,
) -> int:
    """List the runs of a storage path: state, step, last loss, best validation loss, tokens/s a worker, when.

    Examples:
      raymb runs --storage_path s3://bucket/prefix --sort validation
      raymb runs --watch
    """
    from raymb.telemetry.fetched import storage_here
    from raymb.telemetry.listing import in_order, print_runs, watch_runs
    from raymb.telemetry.run_record import summaries

    place = _storage(storage, storage_path, sort, watch and json)

    def listed() -> list[dict[str, Any]]:
        with storage_here(place) as directory:
            return in_order(summaries(directory, place), sort)

    if watch:
        watch_runs(listed, place)
    elif json:
        from json import dumps

        print(dumps(listed()))
    else:
        print_runs(listed(), place)
    return 0


def _storage(positional: str | None, flag: str | None, sort: str, both: bool) -> str:
    """The storage path that was asked for; the other words are checked, too."""
    from raymb.errors import SpecError

    if positional and flag and positional != flag:
        raise SpecError(f"raymb runs {positional} --storage_path {flag}: two storage paths", "give one")
    if sort not in SORTS:
        raise SpecError(f"--sort {sort}: {', '.join(SORTS)} is expected")
    if both:
        raise SpecError("--watch is for people and --json for programs", "give one of them")
    return flag or positional or "raymb-runs"


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    compare: Annotated[str | None, typer.Option("--compare", metavar="RUN2", help="Draw this run over it.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.html", help="Where to; default: RUN/report.html.")
    ] = None,
    price_per_gpu_hour: Annotated[
        float | None,
        typer.Option("--price_per_gpu_hour", metavar="X", help="Show the cost, too: GPU hours times this."),
    ] = None,
) -> int:
    """Write a run as one HTML page that needs nothing else: summary, curves, answers, failures and resumes, layout,
    settings and data. Of a run that is still training it shows what there is."""
    from raymb.telemetry.report import write_report

    print(write_report([run] if compare is None else [run, compare], output, price_per_gpu_hour))
    return 0

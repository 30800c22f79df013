"""`raymb runs` and `raymb report`: what runs there are, and what one was like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_RUN = "Run directory, or its URI: STORAGE_PATH/EXPERIMENT_NAME."


def runs(
    storage_path: Annotated[
        str, typer.Argument(metavar="[STORAGE_PATH]", help="Directory or address that holds runs.")
    ] = "raymb-runs",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array, nothing else.")] = False,
) -> int:
    """List the runs of a storage path: state, step, last loss, best validation loss, tokens/s a worker, when. The
    newest comes last."""
    from raymb.telemetry.fetched import storage_here
    from raymb.telemetry.listing import print_runs
    from raymb.telemetry.run_record import summaries

    with storage_here(storage_path) as directory:
        lines = summaries(directory, storage_path)
    if json:
        from json import dumps

        print(dumps(lines))
    else:
        print_runs(lines, storage_path)
    return 0


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    compare: Annotated[str | None, typer.Option("--compare", metavar="RUN2", help="Draw this run over it.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.html", help="Where to; default: RUN/report.html.")
    ] = None,
) -> int:
    """Write a run as one HTML page that needs nothing else: curves, failures and resumes, layout, settings, data and
    answers. Of a run that is still training it shows what there is."""
    from raymb.telemetry.report import write_report

    print(write_report([run] if compare is None else [run, compare], output))
    return 0

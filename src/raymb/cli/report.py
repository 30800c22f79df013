"""`raymb runs` and `raymb report`: what runs there are, and what one was like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_RUN = "Run directory: STORAGE_PATH/EXPERIMENT_NAME."


def runs(
    storage_path: Annotated[Path, typer.Argument(metavar="[STORAGE_PATH]", help="Directory that holds runs.")] = Path(
        "raymb-runs"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array, nothing else.")] = False,
) -> int:
    """List the runs of a storage path: state, step, last loss, best validation loss, tokens/s a worker, when. The
    newest comes last."""
    from raymb.telemetry.run_record import runs_in, summary

    lines = [summary(run) for run in runs_in(storage_path)]
    if json:
        from json import dumps

        print(dumps(lines))
    else:
        from raymb.telemetry.listing import print_runs

        print_runs(lines, storage_path)
    return 0


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help=_RUN)],
    compare: Annotated[Path | None, typer.Option("--compare", metavar="RUN2", help="Draw this run over it.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.html", help="Where to, instead of RUN/report.html.")
    ] = None,
) -> int:
    """Write a run as one HTML page that needs nothing else: curves, failures and resumes, layout, settings, data and
    answers. Of a run that goes on it shows what there is."""
    from raymb.errors import RunDirError
    from raymb.run_dir import write_atomically
    from raymb.telemetry.report import render
    from raymb.telemetry.run_record import read_run

    records = [read_run(path.absolute()) for path in (run, compare) if path is not None]
    file = output or run / ("report.html" if compare is None else f"report-{records[-1].name}.html")
    try:
        write_atomically(file, render(records))
    except OSError as error:
        raise RunDirError(f"{file} cannot be written ({error.strerror or error})", "give another --output") from None
    print(file)
    return 0

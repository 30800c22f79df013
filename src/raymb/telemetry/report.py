"""`raymb report`: a run, or two side by side, as one HTML page that needs nothing else, not even JavaScript."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from contextlib import ExitStack
from pathlib import Path

from raymb import __version__
from raymb.errors import RunDirError, SpecError
from raymb.storage.files import write_atomically
from raymb.storage.remote import is_uri
from raymb.telemetry import tables
from raymb.telemetry.charts import duration
from raymb.telemetry.curves import AXES, Clock, charts
from raymb.telemetry.fetched import run_here
from raymb.telemetry.run_record import RunRecord, labels, read_run
from raymb.telemetry.summary import summary_of

_PAGE = Path(__file__).parent / "page"


def write_report(asked: list[str], output: Path | None = None, price: float | None = None) -> Path:
    """Read one run, or two to compare, and write the page.

    Args:
        asked: run directories or URIs.
        output: default: report.html in the first run's directory, or here for a run at a URI; named after the
            second run, too, if there is one.
        price: of a GPU's hour.

    Raises:
        RunDirError: one is no run, or the page cannot be written.
        SpecError: the price is no price, or no run has GPUs.
        StorageError: a URI cannot be read.
    """
    if price is not None and not 0 < price < math.inf:
        raise SpecError(f"--price_per_gpu_hour {price:g}: a number above 0 is expected")
    with ExitStack() as stack:
        runs = [read_run(stack.enter_context(run_here(one)), one) for one in asked]
    if price is not None and all(run.plan.get("backend") == "cpu" for run in runs):
        raise SpecError(f"--price_per_gpu_hour {price:g}: {' and '.join(labels(runs))} trained on CPUs", "leave it out")
    name = "report.html" if len(runs) == 1 else f"report-{runs[1].name}.html"
    home = Path(f"{runs[0].name}-{name}") if is_uri(asked[0]) else Path(asked[0]).expanduser() / name
    file = output or home
    try:
        write_atomically(file, render(runs, price))
    except OSError as error:
        raise RunDirError(f"{file} cannot be written ({error.strerror or error})", "give another --output") from None
    return file


def render(runs: list[RunRecord], price: float | None = None) -> str:
    """The page, with every text of the runs escaped.

    Args:
        runs: one, or two to compare.
        price: of a GPU's hour.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    settings, layout = tables.together(runs, tables.settings), tables.together(runs, tables.layout)
    axes = {by: charts(runs, by) for by in AXES}
    return environment.get_template("report.html.jinja").render(
        title=" and ".join(labels(runs)),
        labels=labels(runs),
        runs=runs,
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        axes=axes,
        smoothed=any(line["note"] for chart in axes["step"] for line in chart.lines),
        left_out=[duration(seconds) if (seconds := Clock(run).left_out) >= 1 else "" for run in runs],
        summaries=[summary_of(run, price) for run in runs],
        key_numbers=tables.together(runs, tables.key_numbers),
        layout=layout,
        chosen_settings=tables.set_by_hand(runs),
        differing=tables.differing(settings) if len(runs) > 1 else [],
        settings=settings,
        tables=tables,
    )

"""`raymb report`: a run, or two side by side, as one HTML page that needs nothing else, not even JavaScript."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path

from raymb import __version__
from raymb.telemetry import tables
from raymb.telemetry.charts import duration
from raymb.telemetry.curves import Clock, charts
from raymb.telemetry.run_record import RunRecord

_PAGE = Path(__file__).parent / "page"


def render(runs: list[RunRecord]) -> str:
    """The page, with every text of the runs escaped.

    Args:
        runs: one, or two to compare.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    script = (_PAGE / "report.js").read_text(encoding="utf-8")
    settings, layout = tables.together(runs, tables.settings), tables.together(runs, tables.layout)
    return environment.get_template("report.html.jinja").render(
        title=" and ".join(_labels(runs)),
        labels=_labels(runs),
        runs=runs,
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        style=Markup((_PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        axes={by: charts(runs, by) for by in ("step", "seconds")},
        left_out=[duration(seconds) if (seconds := Clock(run).left_out) >= 1 else "" for run in runs],
        key_numbers=tables.together(runs, tables.key_numbers),
        layout=layout,
        chosen_settings=tables.set_by_hand(runs),
        differing=tables.differing(settings) if len(runs) > 1 else [],
        settings=settings,
        tables=tables,
    )


def _labels(runs: list[RunRecord]) -> list[str]:
    """Names of the runs; with their storage path where the names are the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [f"{run.path.parent.name}/{run.name}" for run in runs]

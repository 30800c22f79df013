"""A plan as Python and notebooks show it."""

from __future__ import annotations

import html
import io
from typing import Any

from raymb.model.shape import ModelShape
from raymb.plan import Plan
from raymb.spec import RunSpec


class Planned:
    """A plan that shows itself as a table. It has the attributes of raymb.plan.layout.Plan: layout, memory (bytes a
    GPU), step_time (seconds), chosen, to_dict() and the rest.

    Args:
        spec: what was asked for.
    """

    def __init__(self, plan: Plan, shape: ModelShape, spec: RunSpec):
        self.plan, self.shape, self.spec = plan, shape, spec

    def __getattr__(self, name: str) -> Any:
        if name == "plan":  # of an object that is just being unpickled
            raise AttributeError(name)
        return getattr(self.plan, name)

    def __str__(self) -> str:
        from rich.console import Console

        from raymb.plan.table import plan_table

        text = io.StringIO()
        width = Console().width  # the terminal's
        plain: dict[str, Any] = {"markup": False, "highlight": False, "force_jupyter": False, "force_terminal": False}
        console = Console(file=text, width=width, **plain)
        console.print(plan_table(self.plan, self.shape, self.spec))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from raymb.plan.table import table_rows

        left = ' style="text-align: left"'
        rows = (
            f"<tr><th{left}>{html.escape(name)}</th><td{left}>{html.escape(text)}</td></tr>"
            for name, text in table_rows(self.plan, self.shape, self.spec)
        )
        return f"<table>{''.join(rows)}</table>"

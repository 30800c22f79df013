"""`--help` as plain text, grouped by section: no flag name is ever cut short, and rich need not be imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand


class SectionedCommand(TyperCommand):
    """A command whose options are listed under the section (`rich_help_panel`) that they belong to, and whose
    `true|false|auto` options may stand alone (`--cuda_graphs`) or be turned round (`--no_cuda_graphs`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What typer makes of the words, with the values that are left out."""
        own = {option for one in self.get_params(ctx) if one.metavar == "true|false|auto" for option in one.opts}
        return super().parse_args(ctx, list(_with_values(args, own)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one block a section, in the schema's order; options of the command itself come first."""
        blocks: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = _argument_record(param) if param.param_type_name == "argument" else _record(param)
            blocks.setdefault(getattr(param, "rich_help_panel", None) or "Options", []).append(record)
        for title, records in blocks.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


def _with_values(words: list[str], own: set[str]) -> Iterator[str]:
    """The words with a value after each of some options.

    Args:
        own: the options, in the schema's spelling.
    """
    for word, after in zip(words, [*words, "--"][1:], strict=True):
        spelled = word.replace("-", "_").replace("__", "--", 1)
        if spelled.startswith("--no_") and spelled.replace("no_", "", 1) in own:
            yield from (spelled.replace("no_", "", 1), "false")
            continue
        yield word
        if spelled in own and (after.startswith("-") or "=" in after):  # another flag, or an override, and no value
            yield "true"


def _argument_record(param: Any) -> tuple[str, str]:
    return f"{param.metavar}...", param.help


def _record(param: Any) -> tuple[str, str]:
    names = ", ".join([*param.opts, *param.secondary_opts])
    if param.is_flag:
        return names, param.help or ""
    value = param.metavar or {int: "INT", float: "FLOAT"}.get(type(param.default), "TEXT")
    default = "" if param.default in (None, "", []) else f" (default: {param.default})"
    return f"{names} {value}", f"{param.help or ''}{default}"

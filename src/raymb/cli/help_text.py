"""`--help` as plain text, one look for all commands: no flag name is ever cut short, and rich need not be imported."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from raymb.errors import SpecError
from raymb.spec.sections import SECTION_OF_FLAG, SECTIONS
from raymb.spec.values import is_common

WIDTH = 100
"""Columns that `--help` fills at most."""
_INDENT = 2


class PlainCommand(TyperCommand):
    """A command whose help lists arguments, then options under the section (`rich_help_panel`) that they belong to.
    What follows `Examples:` in its docstring stands as it is written."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [_argument(param) for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return [*arguments, "[OPTIONS]"]

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        text, _, examples = (self.help or "").partition("\n\nExamples:\n")
        _write_paragraph(formatter, text)
        if examples:
            formatter.write("\nExamples:\n" + textwrap.indent(textwrap.dedent(examples).rstrip(), "  ") + "\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_blocks(formatter, ((_title(param), _record(param)) for param in self.get_params(ctx)))


class SectionedCommand(PlainCommand):
    """A command with the flags of the schema. Its help shows those that most runs need, `--help SECTION` one section
    whole, `--help_all` all. Its `true|false|auto` options may stand alone (`--cuda_graphs`) or be turned round
    (`--no_cuda_graphs`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What typer makes of the words, with the values that are left out."""
        section = None if ctx.resilient_parsing else _section_asked_for(args)
        if section == "all":
            print_all_help(ctx, True)
        if section:
            print(self._help_of_section(ctx, section))
            raise typer.Exit
        own = {option for one in self.get_params(ctx) if one.metavar == "true|false|auto" for option in one.opts}
        return super().parse_args(ctx, list(_with_values(args, own)))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        shown = [param for param in self.get_params(ctx) if _is_shown(param)]
        _write_blocks(formatter, ((_title(param), _short_record(param)) for param in shown))
        left_out = len(self.get_params(ctx)) - len(shown)
        _write_paragraph(
            formatter,
            f"{left_out} more flags: --help SECTION shows one section whole ({', '.join(self._sections(ctx))}), "
            "--help_all all of them.",
        )

    def full_help(self, ctx: Any) -> str:
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        super().format_options(ctx, formatter)
        return formatter.getvalue().rstrip("\n")

    def _help_of_section(self, ctx: Any, section: str) -> str:
        known = self._sections(ctx)
        if section not in known:
            where = SECTION_OF_FLAG.get(section.replace("-", "_"))
            what = f"a flag of the section {where}: --help {where}" if where else "no section"
            raise SpecError(f"--help {section}: {section} is {what}", f"sections: {', '.join(known)}")
        formatter = ctx.make_formatter()
        _write_blocks(
            formatter, ((_title(one), _record(one)) for one in self.get_params(ctx) if _title(one).lower() == section)
        )
        return formatter.getvalue().strip("\n")

    def _sections(self, ctx: Any) -> list[str]:
        panels = (getattr(param, "rich_help_panel", None) for param in self.get_params(ctx))
        return [panel.lower() for panel in dict.fromkeys(panels) if panel]


def print_all_help(ctx: typer.Context, asked: bool) -> None:
    """The callback of `--help_all`."""
    if asked and not ctx.resilient_parsing:
        print(ctx.command.full_help(ctx))  # type: ignore[attr-defined]
        raise typer.Exit


def _section_asked_for(words: list[str]) -> str | None:
    """SECTION of `--help SECTION` or `--help=SECTION`."""
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--help="):
            return word.removeprefix("--help=")
        if word in ("--help", "-h"):
            return None if after.startswith("-") or "=" in after else after or None
    return None


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


def _is_shown(param: Any) -> bool:
    """Without being asked for: options of the command's own, and flags that most runs need."""
    section = SECTIONS.get(_title(param).lower())
    return section is None or is_common(section.model_fields[param.name])


def _title(param: Any) -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    return getattr(param, "rich_help_panel", None) or "Options"


def _argument(param: Any) -> str:
    """As usage has it; one that may be left out stands in brackets."""
    name = (param.metavar or param.name.upper()).strip("[]")
    return (name if param.required else f"[{name}]") + ("..." if param.nargs == -1 else "")


def _record(param: Any) -> tuple[str, str]:
    """Names with the kind of value, and what it is for with the default."""
    text = param.help or ""
    if param.param_type_name == "argument":
        return _argument(param), text + _default(param)
    if param.is_flag:
        names = sorted(param.opts, key=len) if "--help" in param.opts else param.opts  # typer keeps them in a set
        return ", ".join([*names, *param.secondary_opts]), text + (_default(param) if param.secondary_opts else "")
    return f"{', '.join(param.opts)} {param.metavar or _kind(param)}", text + _default(param)


def _short_record(param: Any) -> tuple[str, str]:
    """Of a section's flag the first sentence, and the default."""
    names, text = _record(param)
    if "--help" in param.opts:
        return f"{names} [SECTION]", "Show this, or all flags of a section."
    if _title(param) in ("Arguments", "Options"):
        return names, text
    what, note = re.fullmatch(r"(.*?)( \((?:default: [^()]*|needed)\))?", text).groups(default="")  # type: ignore[union-attr]
    return names, re.split(r"(?<=\.)\s", what, maxsplit=1)[0] + note


def _kind(param: Any) -> str:
    kind = getattr(getattr(param, "type_descriptor", None), "annotation", str)
    return {int: "INT", float: "FLOAT"}.get(kind, "TEXT")


def _default(param: Any) -> str:
    value = param.default
    if value in (None, "", [], ()) or getattr(param, "required", False):
        return ""
    words = {True: "on", False: "off"} if isinstance(value, bool) else {}
    return f" (default: {words.get(value, value)})"


def _write_paragraph(formatter: Any, text: str) -> None:
    lines = textwrap.wrap(" ".join(text.split()), formatter.width - _INDENT, break_on_hyphens=False)
    formatter.write("\n" + "".join(f"{' ' * _INDENT}{line}\n" for line in lines))


def _write_blocks(formatter: Any, records: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """
    Args:
        records: (title of the block, (names, text)).
    """
    blocks: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    for title, record in records:
        blocks.setdefault(title, []).append(record)
    for title, lines in blocks.items():
        if lines:
            formatter.write(f"\n{title}:\n")
            for names, text in lines:
                _write_record(formatter, names, text)


def _write_record(formatter: Any, names: str, text: str) -> None:
    for_names = 34 if formatter.width > 90 else 28
    column = _INDENT + for_names
    lines = textwrap.wrap(text, max(formatter.width - column, 24), break_on_hyphens=False, break_long_words=False)
    if len(names) < for_names - 1 and lines:
        names = f"{names:{for_names}}{lines.pop(0)}"
    formatter.write(f"{' ' * _INDENT}{names}\n" + "".join(f"{' ' * column}{line}\n" for line in lines))

"""docs/reference.md: every flag of the schema and every command, made from the code that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from raymb.cli.options import default_of, metavar_of
from raymb.spec.sections import SECTION_OF_FLAG, SECTIONS
from raymb.spec.values import short_spelling

_HEAD = """# Reference

Made by `scripts/generate-reference` from the code; do not edit. Every flag is a YAML key of the same name in its
section: `--train_iters 200` is `train: {train_iters: 200}`. Dashes do, too: `--train-iters`; a short spelling (`--tp`)
is one of the command line only. `raymb schema` prints the same as JSON Schema, for editors ([schema.json](schema.json);
first line of a YAML file: `# yaml-language-server: $schema=PATH`). `raymb --install-completion` teaches your shell the
flags.

The last column names the fields of Megatron-Bridge's `ConfigContainer` that a flag owns. Every other field is set as
`section.field=value` on the command line, or under `overrides:` in YAML; one that a flag owns is taken as the flag,
where its value says the same.
"""


def reference_page() -> str:
    """Markdown."""
    return "\n".join([_HEAD, *_sections(), "## Commands\n", *_commands()]) + "\n"


def _sections() -> Iterator[str]:
    for section, model in SECTIONS.items():
        yield f"## `{section}:`\n"
        yield "| flag | value | default | what | Bridge |"
        yield "|---|---|---|---|---|"
        for flag, field in model.model_fields.items():
            owned: Any = (field.json_schema_extra or {}).get("bridge", [])  # type: ignore[union-attr]
            name, value = f"`--{flag}`", metavar_of(field)
            if short := short_spelling(field):
                name = f"{name}, `--{short}`"
            if field.annotation is bool:
                name, value = f"{name}, `--no_{flag}`", ""
            yield _row([name, value, _code([default_of(field)]), field.description or "", _code(owned)])
        yield ""


def _commands() -> Iterator[str]:
    from raymb.cli import app

    yield "With what a command has of its own. Those with * take all flags above, `--config` and overrides, too: their"
    yield "`--help` shows the flags that most runs need, `--help SECTION` those of one section, `--help_all` all.\n"
    yield "| command | option | what |"
    yield "|---|---|---|"
    yield from _of_group("", typer.main.get_command(app))


def _of_group(prefix: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        path = f"{prefix}{name}"
        if hasattr(command, "commands"):
            yield from _of_group(f"{path} ", command)
            continue
        takes_all = {param.name for param in command.params} >= SECTION_OF_FLAG.keys()
        yield _row([f"`raymb {path}`{' *' if takes_all else ''}", "", (command.help or "").partition("\n\n")[0]])
        for param in command.params:
            if not takes_all or param.name not in {*SECTION_OF_FLAG, "config", "overrides", "help_all"}:
                argument = param.param_type_name == "argument"
                names = [param.metavar or param.name] if argument else [*param.opts, *param.secondary_opts]
                yield _row(["", _code(names), getattr(param, "help", None) or ""])


def _code(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words if word)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

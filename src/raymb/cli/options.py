"""Turns the RunSpec schema into command-line options: a flag exists because a field exists."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raymb.cli.help_text import print_all_help
from raymb.credentials import redacted
from raymb.errors import SpecError
from raymb.spec import load_section
from raymb.spec.sections import SECTIONS, RunSpec
from raymb.spec.values import Section, ShownAs, short_spelling


def underscored(name: str) -> str:
    """The spelling of a flag in the schema: `num-workers` and `num_workers` are the same flag."""
    return name.replace("-", "_")


def with_spec_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command every flag of the schema, `--config` and positional overrides.

    Args:
        command: `command(spec, **own options)`; its first parameter receives the RunSpec. One that is annotated with
            a Section receives that section, made from flags of the command's own.

    Returns:
        A function whose signature typer reads. Values arrive as strings, so that the schema checks them all at once.
    """

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        values.pop("help_all", None)  # has had its effect
        own_values = {name: values.pop(name) for name in own}
        own_flags = {name: {flag: values.pop(flag) for flag in kind.model_fields} for name, kind in sections.items()}
        own_values |= {name: load_section(kind, own_flags[name]) for name, kind in sections.items()}
        return command(_spec(values), **own_values)

    others = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    sections = {one.name: one.annotation for one in others if _is_section(one.annotation)}
    own = [one.name for one in others if one.name not in sections]
    parameters = [
        inspect.Parameter("overrides", inspect.Parameter.KEYWORD_ONLY, default=_OVERRIDES, annotation=list[str]),
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=_CONFIG, annotation=list[str]),
        inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=_HELP_ALL, annotation=bool),
        *(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in others if one.name in own),
        *(
            _parameter(name, flag, field)
            for name, kind in sections.items()
            for flag, field in kind.model_fields.items()
        ),
        *_schema_parameters(),
    ]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del wrapped.__wrapped__  # typer would read the hints of the command itself
    return wrapped


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


_CONFIG = typer.Option(
    [],
    "--config",
    metavar="FILE",
    help="YAML of sections, a run's spec.json, or the name of a config that comes with raymb; repeatable, the last "
    "wins.",
)
_HELP_ALL = typer.Option(
    False,
    "--help_all",
    help="Show all flags, with all that there is to say about them.",
    is_eager=True,
    callback=print_all_help,
)
_OVERRIDES = typer.Argument(
    None,
    metavar="[SECTION.FIELD=VALUE]",
    help="Another field of Bridge's ConfigContainer, such as optimizer.decoupled_lr=1e-4.",
)


def _spec(values: Mapping[str, Any]) -> RunSpec:
    from raymb.spec import load_spec

    flags = {name: value for name, value in values.items() if name not in ("config", "overrides")}
    flags = {name: value for name, value in flags.items() if value != []}  # a repeatable flag that was not given
    flags["env"] = _environment(flags.get("env") or ())
    files = [Path(file) for file in values["config"] or ()]
    return load_spec(flags, files, values["overrides"] or (), recipe=_below, say=_say)


def _say(line: str) -> None:
    print(redacted(line), file=sys.stderr)


def _below(recipe: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    from raymb.recipes import values_below

    return values_below(recipe, given)


def _environment(words: list[str] | tuple[str, ...]) -> dict[str, str] | None:
    pairs = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not name.isidentifier() or (not separator and name not in os.environ):
            # The value may be a secret whose name was forgotten, so only the form is shown.
            shown = name if value.strip("=") else "..."
            raise SpecError(
                f"--env {shown}: NAME=VALUE is expected, for example NCCL_DEBUG=INFO; or NAME alone, of a variable "
                "that is set here"
            )
        pairs[name] = value if separator else os.environ[name]
    return pairs or None


@functools.cache
def _schema_parameters() -> tuple[inspect.Parameter, ...]:
    return tuple(
        _parameter(section, flag, field)
        for section, model in SECTIONS.items()
        for flag, field in model.model_fields.items()
    )


def _parameter(section: str, flag: str, field: FieldInfo) -> inspect.Parameter:
    panel = section.capitalize()
    help_text = f"{' '.join((field.description or '').split())}{_default(field)}"
    if field.annotation is bool:
        names, annotation, metavar = [f"--{flag}/--no_{flag}"], bool | None, None
    else:
        many = get_origin(field.annotation) in (dict, list)
        names = [f"--{name}" for name in (flag, short_spelling(field)) if name]
        annotation, metavar = list[str] | None if many else str | None, metavar_of(field)
    option = typer.Option(
        None,
        *names,
        help=help_text,
        metavar=metavar,
        rich_help_panel=panel,
        show_default=False,
        autocompletion=_completion(field.annotation),
    )
    return inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " (needed)"
    default = default_of(field)
    return f" (default: {default})" if default else ""


def default_of(field: FieldInfo) -> str:
    """A flag's default in words; "" where there is none to name."""
    value = field.default
    if value in (None, PydanticUndefined, []):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return ",".join(value) if isinstance(value, list) else str(value)


def metavar_of(field: FieldInfo) -> str:
    """The kind of value that `--help` shows after a flag."""
    own = next((one.word for one in field.metadata if isinstance(one, ShownAs)), None)
    return own or _metavar(field.annotation)


def _completion(annotation: Any) -> Callable[[str], list[str]] | None:
    """The shell completes the words that a flag takes."""
    words = [word for word in _metavar(annotation).removesuffix(_MANY).split("|") if word.islower()]
    return (lambda incomplete: [word for word in words if word.startswith(incomplete)]) if words else None


_MANY = ",..."


def _metavar(annotation: Any) -> str:
    """`INT|auto` for `int | Literal["auto"]`, `a|b,...` for a list of two words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_metavar(item) for item in inner if item is not type(None)))
    if origin is Literal:
        return "|".join(str(item) for item in inner)
    if origin is dict:
        return "NAME=VALUE"
    if origin is list:
        words = _metavar(inner[0])
        return f"{words}{_MANY}" if "|" in words else words
    if hasattr(annotation, "__metadata__"):
        shown = next((one.word for one in annotation.__metadata__ if isinstance(one, ShownAs)), None)
        return shown or _metavar(inner[0])
    return {int: "INT", float: "FLOAT", bool: "true|false", str: "TEXT", Path: "PATH"}.get(annotation, "TEXT")

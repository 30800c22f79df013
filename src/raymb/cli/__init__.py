"""The command line, a file a command. Each imports what it needs in its body, so that `--help` stays fast.

May import every room.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer

from raymb import __version__
from raymb.cli import (
    data,
    doctor,
    evaluate,
    export,
    finetune,
    generate,
    init,
    models,
    options,
    plan,
    recipes,
    report,
    schema,
    submit,
    translate,
)
from raymb.cli.help_text import WIDTH, PlainCommand, SectionedCommand
from raymb.cli.own_words import own_words
from raymb.credentials import redacted
from raymb.driver.ray_start import prepare_environment
from raymb.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER, RaymbError
from raymb.spec.names import unknown_flag

# typer carries its own copy of click and names only this leaf of click's errors in public.
_UsageError = typer.BadParameter.__mro__[1]
_CommandLineError: type[Exception] = _UsageError.__mro__[1]

app = typer.Typer(
    name="raymb",
    help="Fine-tune a language model with Megatron-Bridge on Ray.",
    no_args_is_help=False,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={
        "help_option_names": ["--help", "-h"],
        "token_normalize_func": options.underscored,
        "max_content_width": WIDTH,
    },
)
for _name, _module, _summary in (
    ("finetune", finetune, "Fine-tune a model on a Ray cluster."),
    ("plan", plan, "Show the layout, and every rule it breaks."),
):
    app.command(_name, cls=SectionedCommand, short_help=_summary)(options.with_spec_options(_module.command))

for _name, _command, _summary in (
    ("init", init.command, "Four questions, and the YAML of a first run."),
    ("export", export.command, "Write a checkpoint as a Hugging Face model or a PEFT adapter."),
    ("generate", generate.command, "Ask a tuned model, and its base beside it."),
    ("evaluate", evaluate.command, "Score a tuned model on held-out rows."),
    ("runs", report.runs, "List runs with their state, step, loss and speed."),
    ("report", report.report, "Write a run, or two compared, as one HTML page."),
    ("translate", translate.command, "Another tool's config as YAML for --config."),
    ("models", models.command, "Which models can be trained, and where it was proven."),
    ("doctor", doctor.command, "Is this environment able to train?"),
    ("schema", schema.command, "Print the schema of the flags, for editors or as a page."),
):
    app.command(_name, cls=PlainCommand, short_help=_summary)(_command)

_data = typer.Typer(help="Prepare and look at training rows.", rich_markup_mode=None)
for _name, _command, _summary in (
    ("prepare", data.prepare, "Prepare the rows without training."),
    ("inspect", data.inspect, "Show rows as the model will see them, and their numbers."),
):
    _data.command(_name, cls=SectionedCommand, short_help=_summary)(options.with_spec_options(_command))
app.add_typer(_data, name="data")

_recipes = typer.Typer(help="Look at the recipes of Megatron-Bridge.", rich_markup_mode=None)
_recipes.command("list", cls=PlainCommand, short_help="Every recipe by family, with mode, GPUs and layout.")(
    recipes.list_
)
_recipes.command("show", cls=PlainCommand, short_help="A recipe as YAML for --config.")(recipes.show)
app.add_typer(_recipes, name="recipes")

_submit = typer.Typer(help="Run as the job of a cluster.", cls=submit.TargetGroup, rich_markup_mode=None)
for _name, (_kind, _summary) in submit.TARGETS.items():
    _command = options.with_spec_options(submit.command_for(_name, _kind))
    _submit.command(_name, cls=SectionedCommand, short_help=_summary)(_command)
app.add_typer(_submit, name="submit")


@_submit.callback(invoke_without_command=True)
@_recipes.callback(invoke_without_command=True)
@_data.callback(invoke_without_command=True)
def _group_root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(EXIT_OK)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit(EXIT_OK)
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(EXIT_OK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 finished, 1 the run failed, 2 the user's input, 130 interrupted.

    Args:
        arguments: words after the program's name; default: those of this process.

    Raises:
        Exception: one that raymb does not raise on purpose keeps its traceback, and the process exits with 1.
    """
    words = own_words() if arguments is None else list(arguments)
    prepare_environment()
    try:
        code = typer.main.get_command(app)(args=words, prog_name="raymb", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except RaymbError as error:
        return _fail(str(error), error.exit_code)
    except _CommandLineError as error:
        return _fail(_explained(error), EXIT_USER)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)


def _fail(message: str, code: int) -> int:
    print(f"error: {redacted(message)}", file=sys.stderr)
    return code


def _explained(error: Any) -> str:
    """A mistake in the form of the command line, with the nearest known flag."""
    unknown = getattr(error, "option_name", None)
    if unknown is None or not hasattr(error, "possibilities"):
        return f"{error.format_message()}\n  see: {_help_of(error)}"
    known = [name.lstrip("-") for param in error.ctx.command.params for name in param.opts if name.startswith("--")]
    return f"{unknown_flag(unknown, known)}\n  see: {_help_of(error)}"


def _help_of(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'raymb'} --help"

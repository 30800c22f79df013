"""Every command in README.md and docs/ is one that the command line takes, and every file that they name is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from raymb.cli import app, options
from raymb.cli.submit import TARGETS
from raymb.errors import SpecError
from raymb.spec import SECTION_OF_FLAG, load_section

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_START = re.compile(r"^(?:\$ )?(?:RAYMB_\w+=\S+ |CUDA_VISIBLE_DEVICES=\S+ )*(?:python -m |scripts/)?raymb (?=[a-z-])")


def lines_of(page: Path) -> Iterator[str]:
    """Lines of code blocks, fenced and indented, continued ones joined; then what stands in backticks."""
    text = re.sub(r" *\\\n\s*", " ", page.read_text(encoding="utf-8"))
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            # Two commands may stand side by side: `a    or    b`.
            yield from (part.strip() for part in re.split(r"\s{2,}(?:or\s{2,}|#.*)", line))
        else:
            yield from re.findall(r"(?<!`)`([^`]+)`(?!`)", line)


def commands_of(page: Path) -> list[str]:
    """raymb's command lines, without the program."""
    return [line[match.end() :] for line in lines_of(page) if (match := _START.match(line))]


COMMANDS = [(page.name, command) for page in PAGES for command in commands_of(page)]


def words_of(command: str) -> list[str]:
    """`...` stands for flags that were given before, [--a] may be left out, of a|b the first one is taken, N is
    a number; what follows > is the shell's."""
    words = [word.strip("[]") for word in shlex.split(command.partition(" > ")[0])]
    return ["1" if word == "N" else word.partition("|")[0] for word in words if word and word != "..."]


def parsed(words: list[str]) -> dict[str, Any]:
    """The values of a command line's parameters; nothing is run. A command's name alone is in order, too."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("--"):
        command = command.commands[rest.pop(0)]
    # A group's own options act while they are parsed (--install-completion writes into the home directory), so they
    # are only looked up; a name alone lacks its arguments.
    if hasattr(command, "commands"):
        assert set(rest) <= {name for param in command.params for name in param.opts}
        return {}
    context = command.make_context(
        command.name, rest, resilient_parsing=not rest, token_normalize_func=options.underscored
    )
    return context.params


def check(words: list[str]) -> None:
    """Parsed, and checked by the schema where the command takes one; files of the reader's own are left out."""
    values = {name: None if value in ((), []) else value for name, value in parsed(words).items()}
    if SECTION_OF_FLAG.keys() <= values.keys():
        values["hf_model_path"] = values["hf_model_path"] or "MODEL"
        values["config"] = [file for file in values["config"] or () if (ROOT / file).is_file()]
        options._spec({name: values[name] for name in (*SECTION_OF_FLAG, "config", "overrides")})
        if words[0] == "submit" and len(words) > 2:
            target, _ = TARGETS[words[1]]
            load_section(target, {name: values[name] for name in target.model_fields})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_one_that_can_be_given(
    page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))  # should anything act after all
    check(words_of(command))


def test_there_are_commands_and_wrong_ones_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert len(COMMANDS) > 30 and {"README.md", "data.md", "export.md"} <= {page for page, _ in COMMANDS}
    for wrong in ("finetune --train_itres 5", "plan --num_workers", "generate --prompt a"):
        with pytest.raises(typer.BadParameter.__mro__[1]):
            check(words_of(wrong))
    with pytest.raises(KeyError):
        check(["fine"])
    with pytest.raises(SpecError, match="--recompute some"):
        check(words_of("plan --recompute some"))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w./-])((?:scripts|configs|tests|src/raymb)/[\w./-]*\w)", text)
    linked = [link for link in re.findall(r"\]\(([^)#:]+)\)", text) if not link.startswith("http")]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [link for link in linked if not (page.parent / link).exists()] == []


def flags() -> set[str]:
    """Of all commands."""

    def of(command: Any) -> Iterator[str]:
        for param in command.params:
            own = [name for name in [*param.opts, *param.secondary_opts] if name.startswith("--")]
            turned = [f"--no_{name[2:]}" for name in own] if getattr(param, "metavar", "") == "true|false|auto" else []
            yield from own + turned
        for inner in getattr(command, "commands", {}).values():
            yield from of(inner)

    return {*of(typer.main.get_command(app)), "--help"}


OTHERS = {"--all", "--batch", "--break-system-packages", "--gpus", "--reservation", "--sides", "--signal", "--warm"}
"""Flags of scripts and of other programs."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "coming-from"], ids=lambda path: path.name)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    known = flags() | OTHERS
    text = re.sub(r"^(?:    |\| ).*(?:bench|torchrun|podman|pip ).*$", "", page.read_text(encoding="utf-8"), flags=re.M)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9]*(?![\w-]*-)", text))
    assert sorted(named - known) == []

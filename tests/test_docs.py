"""README.md, its neighbours and docs/: every command is one that the command line takes, every file and heading that is
named is there, every output of `raymb plan` is what it prints, and every quoted message is in the source.
tests/outputs.py has the outputs of real runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import draw_diagrams
import pytest
import read_aloud
import typer
from markdown.extensions.toc import slugify

from raymb.cli import app, main, options
from raymb.cli.submit import TARGETS
from raymb.errors import SpecError
from raymb.spec import SECTION_OF_FLAG, load_section
from raymb.telemetry import records
from tests.messages import is_printed

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
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
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_to_a_page_and_its_heading(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s:]*)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not is_there(page, *link.partition("#")[::2])] == []


def is_there(page: Path, file: str, heading: str) -> bool:
    target = page.parent / file if file else page
    if not heading or not target.exists():
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return heading in {slugify(re.sub(r"[`*]|\]\([^)]*\)", "", text), "-") for text in headings}


def test_every_page_that_the_source_names_is_there() -> None:
    folders = [ROOT / name for name in ("src", "scripts", "tests", "configs")]
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in ("", ".py", ".yaml")]
    texts = {file: file.read_text(encoding="utf-8", errors="ignore") for file in files if file.is_file()}
    named = [(file, name) for file, text in texts.items() for name in re.findall(r"\bdocs/[\w-]+\.(?:md|json)", text)]
    assert len(named) > 10
    assert [(str(file), name) for file, name in named if not (ROOT / name).is_file()] == []


def test_the_page_of_the_run_directory_has_every_field_of_metrics() -> None:
    text = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8")
    fields = {*records.Step.__annotations__, *records.HeldOutLoss.__annotations__} - {"kind"}
    assert "step_seconds" in fields
    assert sorted(field for field in fields if not re.search(rf"^\|.*`{field}`.*\|.*\|", text, re.MULTILINE)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_no_placeholder_is_left(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"@[A-Z_]{3,}@|\b(?:TODO|TBD|FIXME|XXX)\b|```text\n```|(?i:lorem ipsum)", text) == []


# Outputs and messages


def blocks_of(page: Path) -> list[str]:
    """Of fenced texts, as they stand."""
    return re.findall(r"^```text\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def plans_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """(command, lines of output) of each `$ raymb plan` in a block, fenced or indented; `...` stands for anything."""
    lines = [line.removeprefix("    ") for line in page.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines):
        if line.startswith("$ raymb plan --"):
            output = iter(lines[number + 1 :])
            yield (
                line.removeprefix("$ raymb "),
                [text for text in iter(lambda output=output: next(output).strip(), "") if text != "```"],
            )


PLANS = [(page.name, *plan) for page in PAGES for plan in plans_of(page)]


@pytest.mark.parametrize(("page", "command", "lines"), PLANS)
def test_a_plan_is_what_raymb_prints(
    page: str,
    command: str,
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = shlex.split(command)
    model = words[words.index("--hf_model_path") + 1]
    published = json.loads((ROOT / "tests/model/published" / f"{model.replace('/', '--')}.json").read_text())
    (tmp_path / model).mkdir(parents=True)
    (tmp_path / model / "config.json").write_text(json.dumps(published["config"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    main(words)
    captured = capsys.readouterr()
    printed = " ".join((captured.out + captured.err).split())
    for line in lines:
        place = 0
        for part in filter(None, (" ".join(part.split()) for part in line.split("..."))):
            assert part in printed[place:], f"{page}: {part!r} is not in the output of raymb {command}:\n{printed}"
            place = printed.index(part, place)


def test_plans_are_found() -> None:
    assert {"README.md", "long-context.md", "moe.md", "multi-node.md"} <= {page for page, _, _ in PLANS}
    assert all(len(lines) > 1 for _, _, lines in PLANS)


QUOTED = [
    line.strip()
    for page in PAGES
    if page.name == "troubleshooting.md"
    for block in blocks_of(page)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", QUOTED)
def test_a_quoted_message_is_in_the_source(line: str) -> None:
    # raymb doctor: `status  check: what it found`, `fix: what to do`
    text = re.sub(r"^(?:error|warning) {2,}[^:]+: |^fix: |^- ", "", line)
    assert is_printed(text)


def test_messages_that_raymb_does_not_print_are_found() -> None:
    assert len(QUOTED) > 30
    invented = [
        "error: no Ray cluster was found at 10.0.0.5:6379: No route to host",
        "the gradient norm was nan at step 412",
        "error: --storage_path /x cannot be used on several machines",
        "/dev/shm is too small for NCCL and for Ray",
    ]
    assert [line for line in invented if is_printed(line)] == []


# The site


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: RAYMB_DEV=1 scripts/setup")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    html = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.glob("*.html")}
    assert {page.with_suffix(".html").name for page in PAGES if page.parent == ROOT / "docs"} <= html.keys()
    assert (tmp_path / "search" / "search_index.json").is_file()
    asked = [
        (name, address.partition("?")[0].partition("#")[0])
        for name, text in html.items()
        for address in re.findall(r'<(?:link|script|img)\b[^>]*?(?:href|src)="([^"]+)"', text)
    ]
    assert [(name, address) for name, address in asked if "://" in address] == [], "something is fetched elsewhere"
    assert [(name, address) for name, address in asked if not (tmp_path / address.lstrip("/")).is_file()] == []


def test_every_drawing_is_as_scripts_draw_diagrams_draws_it() -> None:
    drawn = {f"{name}.svg": draw().svg() for name, draw in draw_diagrams.DRAWINGS.items()}
    assert {file.name: file.read_text() for file in draw_diagrams.IMAGES.glob("*.svg")} == drawn


def test_nothing_is_to_be_rewritten() -> None:
    assert list(read_aloud.complaints(every=False)) == []


def test_what_is_to_be_rewritten_is_found() -> None:
    long = f"A run {'that is very ' * 9}long ends here. A short one `with --code and many other words in it` follows."
    assert [count for count, _ in read_aloud.long_sentences(long)] == [32]
    assert read_aloud.long_sentences(long.replace(" long ends", " long. It ends")) == []
    assert [found for found, _ in read_aloud.words_to_replace("The rules of the House, `house`, gone on with.")] == [
        "gone on with",
        "House",
    ]


def test_the_design_page_has_the_layers_of_pyproject() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer.split(" | ") for layer in contracts[0]["layers"]]
    rows = re.findall(r"^\| \d+ \| (`[^|]+) \|", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    said = [name for row in rows for name in re.findall(r"`(\w+)/?`", row)]
    assert said == [name for layer in layers for name in layer]


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


OTHERS = {
    *("--all", "--batch", "--break-system-packages", "--gpus", "--head", "--ipc", "--port", "--reservation", "--serve"),
    *("--micro_batches", "--sides", "--signal", "--warm"),
}
"""Flags of scripts and of other programs."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "coming-from"], ids=lambda path: path.name)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    known = flags() | OTHERS
    text = re.sub(r"^(?:    |\| ).*(?:bench|torchrun|podman|pip ).*$", "", page.read_text(encoding="utf-8"), flags=re.M)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_0-9]*(?![\w-]*-)", text))
    assert sorted(named - known) == []

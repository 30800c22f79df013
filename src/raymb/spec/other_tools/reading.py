"""A file of another tool: YAML, JSON, or the shell script that starts it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raymb.errors import SpecError
from raymb.spec.other_tools import FILES
from raymb.spec.other_tools.record import Given, Tool


def read_file(file: Path) -> Given:
    """Keys to values, dotted where the file is nested.

    Raises:
        SpecError: it cannot be read, or is neither of the three.
    """
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file}: cannot be read ({error})") from None
    try:
        content = None if file.suffix == ".sh" else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    given = dict(_words_of_a_script(text)) if content is None or isinstance(content, str) else content
    if not isinstance(given, Mapping) or not given:
        raise SpecError(f"{file}: a mapping of keys to values is expected, or a script with flags (--model ...)")
    return _resolved({str(key): value for key, value in given.items()})


def tool_of(given: Given, file: Path, named: str | None) -> Tool:
    """Whose file it is: of the tools the one whose tables have most of its keys.

    Args:
        named: what --from says.

    Raises:
        SpecError: --from names no tool; no tool's keys, or those of two.
    """
    if named is not None:
        if named not in FILES:
            raise SpecError(f"--from {named}: {', '.join(FILES)} is expected")
        return FILES[named]
    counts = {tool.name: _known(tool, given) for tool in FILES.values()}
    best = max(counts.values())
    found = [name for name, count in counts.items() if count == best]
    if best < 2 or len(found) > 1:
        what = "no tool's keys are in it" if best < 2 else f"its keys are those of {' and of '.join(found)}"
        raise SpecError(f"{file}: {what}", f"say whose it is: --from {'|'.join(FILES if best < 2 else found)}")
    return FILES[found[0]]


def _known(tool: Tool, given: Given) -> int:
    names = tool.by_name()
    return sum(name in names for name in flattened(given, names))


def flattened(content: Mapping[str, Any], names: Iterable[str], above: str = "") -> Given:
    """`{a: {b: 1}}` as `{"a.b": 1}`; a mapping that is a key of its own in the table stays whole."""
    given: Given = {}
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value and name not in names:
            given |= flattened({str(one): inner for one, inner in value.items()}, names, f"{name}.")
        else:
            given[name] = value
    return given


def _words_of_a_script(text: str) -> Iterator[tuple[str, Any]]:
    """NAME=VALUE before the command and --flag VALUE ... of it; a flag alone is true."""
    import yaml

    def read(word: str) -> Any:
        return yaml.safe_load(word) if re.fullmatch(r"[\w.+-]+", word) else word

    try:
        words = shlex.split(re.sub(r"\\\n", " ", text), comments=True)
    except ValueError:
        return
    flag, values = "", []
    for word in [*words, "--"]:
        if not word.startswith("--"):
            name, equals, value = word.partition("=")
            if flag:
                values.append(word)
            elif equals and name.isidentifier() and name.isupper():
                yield name, read(value)
            continue
        if flag:
            read_values = [read(value) for value in values]
            yield flag, True if not values else read_values[0] if len(values) == 1 else read_values
        flag, _, value = word.removeprefix("--").replace("-", "_").partition("=")
        values = [word.partition("=")[2]] if value else []


def _resolved(content: Any, root: Any = None) -> Any:
    """With `${a.b}` as what it names; what it names nothing by stays as it is written."""
    root = content if root is None else root
    if isinstance(content, Mapping):
        return {str(key): _resolved(value, root) for key, value in content.items()}
    if isinstance(content, list):
        return [_resolved(value, root) for value in content]
    if not isinstance(content, str):
        return content
    whole = re.fullmatch(r"\$\{([\w.]+)\}", content)
    if whole:
        found = _looked_up(root, whole[1])
        return content if found is None or found == content else _resolved(found, root)
    return re.sub(r"\$\{([\w.]+)\}", lambda match: str(_looked_up(root, match[1]) or match[0]), content)


def _looked_up(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = root.get(part) if isinstance(root, Mapping) else None
    return root

"""What raymb can print: the texts of its source, and which lines of output they make."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
_LEAST = 7
"""Letters that a text must have of its own, so that not every line has it."""
_SHARE = 0.5
"""Of a line's letters: what must stand in the source where a line is made of several texts."""


def is_printed(line: str) -> bool:
    """Whether a line of output is one text of raymb's, whatever is filled in, or most of it is several."""
    text = re.sub(r"^(?:error|warning|setup|install-cuda): ", "", line.strip())
    written: set[int] = set()
    for pattern in _patterns():
        if pattern.fullmatch(text):
            return True
        if found := pattern.search(text):
            written |= {place for group in range(1, pattern.groups + 1) for place in range(*found.span(group))}
    letters = {place for place, letter in enumerate(text) if letter.isalpha()}
    return len(letters & written) >= _SHARE * len(letters)


@cache
def _patterns() -> list[re.Pattern[str]]:
    """A pattern for each line of each text, with a group for each part that is written in the source."""
    found = {pattern for file in (ROOT / "src" / "raymb").rglob("*.py") for pattern in _of_python(file)}
    found |= {pattern for name in ("install-cuda", "setup") for pattern in _of_shell(ROOT / "scripts" / name)}
    return [re.compile(pattern) for pattern in sorted(found)]


def _of_python(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield from _of_parts([str(part.value) if isinstance(part, ast.Constant) else None for part in node.values])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _of_parts([node.value])


def _of_shell(file: Path) -> Iterator[str]:
    for text in re.findall(r'(?:die|say) "([^"]+)"', file.read_text(encoding="utf-8")):
        yield from _of_parts([None if part.startswith("$") else part for part in re.split(r"(\$\w+)", text)])


def _of_parts(parts: list[str | None]) -> Iterator[str]:
    """
    Args:
        parts: None where something is filled in.
    """
    for line in "".join("\0" if part is None else part for part in parts).split("\n"):
        written = [re.escape(part) for part in line.strip().split("\0")]
        if sum(letter.isalpha() for letter in line) >= _LEAST:
            yield ".+".join(f"({part})" if part else "" for part in written)

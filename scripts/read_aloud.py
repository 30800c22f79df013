"""What scripts/read-aloud runs: sentences that nobody can read aloud in one breath, and words to be replaced."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown
import yaml

ROOT = Path(__file__).parents[1]
MOST_WORDS = 30
SHORT = ("Get started", "Guides", "Troubleshooting")
"""Parts of the site whose pages, as README.md, have no longer sentence."""

INSTEAD = {
    r"(go|goes|gone|went) on with": "resume, continue",
    r"a run that goes on": "a run that resumes",
    r"behind the \w+ step": "after step N",
    r"a model that sees|seeing models?": "vision-language model",
    r"house|holy": "raymb, or the rule itself",
    r"(the only|other|its|two|between) rooms?(?! for| in)|rooms of": "package, layer",
    r"mission|mission's": "the command or example by its name",
    r"mended|mends": "fixed",
    r"and its kin": "name them",
    r"whoever": "a command that, a user who",
    r"words of ray": "Ray's messages",
    r"(is|are|was|were) blind": "cannot read",
    r"at an address|remote place": "at a URI",
    r"speaking of|talks? to itself": "name it",
}
"""Words to be replaced, as regular expressions, and by what."""

ELSEWHERE = ("performance.md", "coming-from.md")
"""Pages that are being rewritten, and whose words are not looked at until then."""

_BLOCKS = {"p", "li", "td", "th", "h1", "h2", "h3", "h4", "dd", "dt"}


class _Texts(HTMLParser):
    """(tag, text) of each paragraph, list item, cell and heading. What is in backticks is one word; code is none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self._open: list[tuple[str, list[str]]] = []
        self._code = self._pre = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._code += tag == "code"
        self._pre += tag == "pre"
        if tag == "code" and self._open and not self._pre:
            self._open[-1][1].append("CODE")
        if tag in _BLOCKS:
            self._open.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "code"
        self._pre -= tag == "pre"
        if tag in _BLOCKS and self._open:
            kind, parts = self._open.pop()
            if text := " ".join("".join(parts).split()):
                self.found.append((kind, text))

    def handle_data(self, data: str) -> None:
        if self._open and not self._code and not self._pre:
            self._open[-1][1].append(data)


def texts_of(page: str) -> list[tuple[str, str]]:
    """
    Args:
        page: Markdown.
    """
    parser = _Texts()
    parser.feed(markdown.markdown(page, extensions=["tables", "fenced_code", "admonition", "sane_lists"]))
    return parser.found


def sentences_of(page: str) -> Iterator[str]:
    """A table's cells are notes: there a semicolon or a colon ends a sentence, too."""
    for tag, text in texts_of(page):
        ends = r"(?<=[.!?;:])\s+" if tag in ("td", "th") else r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*(?:[A-Z0-9]|raymb|vLLM))"
        yield from re.split(ends, text)


def long_sentences(page: str) -> list[tuple[int, str]]:
    """(number of words, sentence)."""
    counted = ((len(re.findall(r"[^\s]*\w[^\s]*", sentence)), sentence) for sentence in sentences_of(page))
    return [(count, sentence) for count, sentence in counted if count > MOST_WORDS]


def words_to_replace(page: str) -> list[tuple[str, str]]:
    """(what is written, what to write instead)."""
    text = "\n".join(text for _, text in texts_of(page))
    return [
        (found.group(), instead)
        for words, instead in INSTEAD.items()
        for found in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
    ]


def short_pages() -> list[Path]:
    """README.md and the pages of SHORT."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), loader)["nav"]
    parts = {title: part for entry in nav for title, part in entry.items() if title in SHORT}
    return [ROOT / "README.md", *(ROOT / "docs" / name for part in parts.values() for name in _names(part))]


def _names(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    else:
        for inner in part if isinstance(part, list) else part.values():
            yield from _names(inner)


def complaints(every: bool) -> Iterator[str]:
    """
    Args:
        every: long sentences of all pages.
    """
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    short = short_pages()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT)
        if every or page in short:
            for count, sentence in long_sentences(text):
                yield f"{name}: {count} words: {sentence}"
        if page.name not in ELSEWHERE:
            for words, instead in words_to_replace(text):
                yield f'{name}: "{words}": write: {instead}'


def main() -> int:
    found = list(complaints("--all" in sys.argv[1:]))
    print("\n".join(found) if found else "nothing to rewrite")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Characters that no text has, put around what messages say, so that a rendered conversation shows who says what.

Each message has one for each kind of what it says. Taken out again, they leave the text that the template makes of the
messages themselves; where they do not, the template looked at them, and they are no proof.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raymb.data.chat_template import REASONING_KEYS
from raymb.data.row_values import WrongRow
from raymb.data.shapes import Row

WORDS, REASONING, CALL, NAME = range(4)
_KINDS = 4
_PLANES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # characters that Unicode leaves to private use
_PRIVATE = re.compile("[\U000f0000-\U0010fffd]")
_LEAD = re.compile(r"(?:\s|</?[a-z_]+>)*")
_CLOSING = re.compile(r"</?[a-z_]+>\Z")
_ESCAPED = re.compile(r"\\u(db[0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
_THOUGHT = re.compile(r"(\s*<think>.*?)(</think>.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Run:
    """A stretch of a rendered text in which one message has the word.

    Args:
        message: its index.
        begin, end: what it says; what a template writes around that lies outside.
        last: (message, kind, how many of these there are up to here) of the sentinel at the end.
    """

    message: int
    begin: int
    end: int
    last: tuple[int, int, int]


class Sentinels:
    """For one conversation.

    Args:
        text: the rendered conversation; it must hold none of the characters.

    Raises:
        WrongRow: the text leaves no private characters for it.
    """

    def __init__(self, text: str, messages: list[Row]):
        size = len(messages) * _KINDS
        used = {ord(character) for character in _PRIVATE.findall(text)}
        self.base = _free(used, size)
        self.pattern = re.compile(f"[{chr(self.base)}-{chr(self.base + size - 1)}]") if used else _PRIVATE
        self.expected: set[tuple[int, int]] = set()
        self.messages = [self._placed(index, message) for index, message in enumerate(messages)]

    def read(self, text: str) -> tuple[str, list[tuple[int, int, int]]]:
        """(the text without sentinels, (place in that, message, kind) of each)."""
        if "\\udb" in text:  # a template that writes JSON in ASCII
            text = _ESCAPED.sub(self._unescaped, text)
        marks, echoes = [], set()
        for count, match in enumerate(self.pattern.finditer(text)):
            message, kind = divmod(ord(match[0]) - self.base, _KINDS)
            if kind == NAME and message in echoes:  # a tool's answer may be headed by the name that was called
                continue
            if kind == NAME:
                echoes.add(message)
            marks.append((match.start() - count, message, kind))
        return self.pattern.sub("", text), marks

    def _unescaped(self, pair: re.Match[str]) -> str:
        character = bytes.fromhex(pair[1] + pair[2]).decode("utf-16-be")
        return character if self.pattern.match(character) else pair[0]

    def _placed(self, index: int, message: Row) -> Row:
        placed = dict(message)
        content = message.get("content")
        thought = _THOUGHT.match(content) if isinstance(content, str) and message["role"] == "assistant" else None
        if thought:
            placed["content"] = self._around(thought[1], index, REASONING) + self._around(thought[2], index, WORDS)
        else:
            placed["content"] = self._deep(content, index, WORDS)
        for key in REASONING_KEYS:
            if isinstance(message.get(key), str):
                placed[key] = self._around(message[key], index, REASONING)
        if message.get("tool_calls"):
            placed["tool_calls"] = [self._call(call, index) for call in message["tool_calls"]]
        return placed

    def _call(self, call: Any, index: int) -> Any:
        if not isinstance(call, dict):
            return call
        inner = dict(call.get("function") or call)
        if isinstance(inner.get("name"), str):
            inner["name"] = self._character(index, NAME) + inner["name"]
            self.expected.add((index, NAME))
        if "arguments" in inner:
            inner["arguments"] = self._deep(inner["arguments"], index, CALL)
        return {**call, "function": inner} if call.get("function") else inner

    def _deep(self, value: Any, index: int, kind: int) -> Any:
        if isinstance(value, str):
            return self._around(value, index, kind)
        if isinstance(value, dict):
            skipped = ("type",) if kind == WORDS else ()  # of a part of a content
            return {key: one if key in skipped else self._deep(one, index, kind) for key, one in value.items()}
        return [self._deep(one, index, kind) for one in value] if isinstance(value, list) else value

    def _around(self, text: str, index: int, kind: int) -> str:
        """Within white space and tags, which templates strip and look for; a text of nothing else stays."""
        begin, end = _LEAD.match(text).end(), len(text)  # type: ignore[union-attr]
        while end > begin:
            closing = _CLOSING.search(text, max(begin, end - 40), end)
            shorter = closing.start() if closing else len(text[begin:end].rstrip()) + begin
            if shorter == end:
                break
            end = shorter
        if begin >= end:
            return text
        self.expected.add((index, kind))
        character = self._character(index, kind)
        return f"{text[:begin]}{character}{text[begin:end]}{character}{text[end:]}"

    def _character(self, index: int, kind: int) -> str:
        return chr(self.base + index * _KINDS + kind)


def _free(used: set[int], size: int) -> int:
    """The first of `size` characters in a row that are not used."""
    for plane in _PLANES:
        for base in (plane.start, *(one + 1 for one in sorted(used))):
            if base in plane and base + size in plane and used.isdisjoint(range(base, base + size)):
                return base
    raise WrongRow("its text uses all characters that its turns could be told apart by")


def runs_of(marks: Iterable[tuple[int, int, int]]) -> list[Run]:
    """In the order of the text."""
    runs: list[Run] = []
    counts: Counter[tuple[int, int]] = Counter()
    for place, message, kind in marks:
        counts[message, kind] += 1
        last = (message, kind, counts[message, kind])
        if runs and runs[-1].message == message:
            runs[-1] = Run(message, runs[-1].begin, place, last)
        else:
            runs.append(Run(message, place, place, last))
    return runs

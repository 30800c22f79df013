"""Between the words of two messages: where the one ends and where the other begins, of texts alone.

A gap is what a template writes from the last word of one message to the first of the next. A tail is what it writes
after the same last word when the conversation ends there.
"""

from __future__ import annotations

import re
from typing import Any


class Marks:
    """The tokens of a tokenizer that texts hold as marks, such as <|im_end|>: one is never split.

    Args:
        tokenizer: of transformers.
    """

    def __init__(self, tokenizer: Any):
        added = tokenizer.added_tokens_decoder.values()
        self._any = _pattern(token.content for token in added)
        self._special = _pattern([token.content for token in added if token.special] + tokenizer.all_special_tokens)

    def special(self, text: str, start: int = 0, stop: int | None = None) -> re.Match[str] | None:
        """The first special one."""
        return self._special.search(text, start, len(text) if stop is None else stop)

    def shared(self, one: str, other: str) -> int:
        """Characters that both begin with, no mark cut."""
        pairs = enumerate(zip(one, other, strict=False))
        length = next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
        for text in (one, other):
            for match in self._any.finditer(text):
                if match.start() < length < match.end():
                    length = match.start()
        return length

    def end(self, gap: str, shared: int, by_next: bool) -> int:
        """Where in a gap the first message's turn ends: after what the tail begins with, too, if there is a mark in
        that; else after the first mark, which may be the next message's.

        Args:
            shared: characters that the tail has, too; 0 where the template refuses to end there.
            by_next: it is the next message's mark that ends an answer.
        """
        if not by_next and self.special(gap, 0, shared):
            return shared
        following = self.special(gap, shared)
        return following.end() if following else shared

    def begin(self, gap: str, prompted: str, tail: str) -> int | None:
        """Where in a gap an answer begins: after the generation prompt.

        Args:
            prompted: the tail with a generation prompt.

        Returns:
            None if that is not known.
        """
        shared = self.shared(gap, prompted)
        if shared == len(prompted) or shared == len(gap):
            return shared
        ending = self.shared(prompted, tail)
        if ending < len(prompted) and shared >= ending:  # the prompt opens what this answer does not have, as <think>
            return shared
        if ending == len(prompted) and self.special(gap, 0, shared):  # the prompt is always there, and opens something
            return shared
        return self.after_prompt(gap, prompted[ending:], shared)

    def after_prompt(self, gap: str, prompt: str, start: int = 0) -> int | None:
        """Where a prompt ends in a gap, without those of its last marks that the gap does not have; None if the gap has
        none of it."""
        while prompt.strip():
            place = gap.find(prompt, start)
            if place >= 0:
                return place + len(prompt)
            last = list(self._any.finditer(prompt))
            prompt = prompt[: last[-1].start()] if last else ""
        return None


def _pattern(words: Any) -> re.Pattern[str]:
    found = sorted({word for word in words if word.strip()}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)) or r"(?!)")

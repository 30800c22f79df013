"""Which characters of a rendered conversation are an assistant's turns, where the chat template does not mark them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from raymb.data.shapes import Row, WrongRow

_SENTINEL = "raymb-end-of-turn"


class Turns:
    """Finds turns by asking the template: one begins where a generation prompt after the messages before it stops, and
    ends with the template's end-of-turn text.

    Args:
        tokenizer: of transformers, with a chat template.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def _render(self, row: Row) -> Callable[..., str]:
        def render(messages: list[dict[str, Any]], prompt: bool = False) -> str:
            return self.tokenizer.apply_chat_template(
                messages, tools=row.get("tools"), tokenize=False, add_generation_prompt=prompt
            )

        return render

    def find(self, row: Row, loss_mode: str) -> tuple[str, list[tuple[int, int]]]:
        """(text, the stretches of it that are trained)."""
        render, messages = self._render(row), row["messages"]
        text = render(messages)
        if loss_mode == "full":
            return text, [(0, len(text))]
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if loss_mode == "last_turn":
            turns = turns[-1:]
        return text, [self._turn(render, messages, index, text) for index in turns]

    def _turn(self, render: Callable[..., str], messages: list[Row], index: int, text: str) -> tuple[int, int]:
        """(begin, end) of an assistant's turn in the text of the whole conversation."""
        asked = render(messages[:index], True)
        start = _common(asked, text)
        rest = asked[start:].strip()
        if rest and not rest.startswith("<think"):  # opened by the template although this turn has no reasoning
            raise WrongRow(
                f"the chat template renders messages[{index}] differently as part of the whole, so that its tokens "
                f"cannot be told apart; give a --chat_template with {{% generation %}} marks, or --loss_mode last_turn"
            )
        end = text.find(self._end_of_turn, start) if self._end_of_turn else -1
        if end >= 0:
            return start, end + len(self._end_of_turn)
        through = render(messages[: index + 1])
        if not text.startswith(through):
            raise WrongRow(
                f"the chat template does not say where messages[{index}] ends; give a --chat_template with "
                f"{{% generation %}} marks"
            )
        return start, len(through)

    @cached_property
    def _end_of_turn(self) -> str:
        """What the template writes behind an assistant's last words, white space left out."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL}]
        return self._render({})(messages).rpartition(_SENTINEL)[2].strip()


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    if other.startswith(one):
        return len(one)
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def overlap(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """1 for each token that shares a character with a span; spans are in order."""
    marks = [0] * len(offsets)
    spans = sorted(spans)
    current = 0
    for index, (start, end) in enumerate(offsets):
        while current < len(spans) and spans[current][1] <= start:
            current += 1
        if current == len(spans):
            break
        marks[index] = int(spans[current][0] < end and start < end)
    return marks

"""Why each turn of a row is trained or not, a line each, and a sample's tokens as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raymb.data.row_values import WrongRow
from raymb.data.settings import Settings
from raymb.data.shapes import Row


@dataclass(frozen=True)
class Stretch:
    """Tokens of a sample that are all trained, or all not."""

    ids: list[int]
    trained: bool


@dataclass(frozen=True)
class Shown:
    """A sample to explain.

    Args:
        stretches: all its tokens, in order.
        raw: the row that it was made of, JSON lines as bytes; None where it is not at hand.
    """

    stretches: list[Stretch]
    raw: Any


def stretches_of(ids: list[int], trained: list[int]) -> list[Stretch]:
    """In order; the first token counts as not trained, because nothing predicts it."""
    found: list[Stretch] = []
    for index, token in enumerate(ids):
        is_trained = bool(trained[index]) and index > 0
        if not found or found[-1].trained != is_trained:
            found.append(Stretch([], is_trained))
        found[-1].ids.append(token)
    return found


def explained(settings: Settings, samples: list[Shown]) -> list[tuple[list[str], list[str]]]:
    """(the text of each stretch, a line for each turn) of every sample."""
    from raymb.data.encode import Encoder

    tokenizer = Encoder(settings).tokenizer
    chat = bool(tokenizer.chat_template)
    return [
        ([tokenizer.decode(stretch.ids) for stretch in sample.stretches], turns(sample, settings, chat))
        for sample in samples
    ]


def turns(sample: Shown, settings: Settings, chat: bool) -> list[str]:
    """A line for each turn of the row; none where the row is not at hand.

    Args:
        chat: whether the model has a chat template.
    """
    if sample.raw is None:
        return []
    try:
        raw = json.loads(sample.raw) if isinstance(sample.raw, bytes) else sample.raw
        row = settings.shape.read(raw, chat=chat)
    except (ValueError, WrongRow):  # the file is another one by now
        return []
    wanted = list(_wanted(row, settings.loss_mode, settings.train_on_roles))
    lengths = [len(stretch.ids) for stretch in sample.stretches if stretch.trained]
    whole = sum(len(stretch.ids) for stretch in sample.stretches) < settings.max_tokens
    counted = whole and len(lengths) == sum(not why for _, why in wanted)
    return [_line(turn, why, lengths if counted else []) for turn, why in wanted]


def _line(turn: str, why: str, lengths: list[int]) -> str:
    if why:
        return f"{turn}: not trained ({why})"
    return f"{turn}: trained" + (f", {lengths.pop(0)} tokens" if lengths else "")


def _wanted(row: Row, loss_mode: str, roles: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(turn, why it is not trained; "" where it is)."""
    full = loss_mode == "full"
    if "text" in row:
        yield "document", ""
    elif "prompt" in row:
        yield "prompt", "" if full else "not the completion"
        yield "completion", ""
    else:
        messages = row["messages"]
        answers = [index for index, message in enumerate(messages) if message["role"] in roles]
        for index, message in enumerate(messages):
            why = ""
            if message.get("weight") == 0:
                why = "weight 0"
            elif message["role"] not in roles and not full:
                why = "its role"
            elif loss_mode == "last_turn" and index != answers[-1]:
                why = "--loss_mode last_turn"
            yield f"{index} {message['role']}", why

"""Whether a sample of tests/data/published.py is trained right, by its words and by the template's marked twin."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from itertools import groupby, islice, pairwise
from typing import Any

from tests.data.published import Row

from raymb.data.settings import DAY

WORD = re.compile(r"(?:USER|SYSTEM|TOOL|ANSWER|REASON|WORDS|ARGUMENT)\d")
_OTHERS = ("USER", "SYSTEM", "TOOL")
_ANSWERS = ("ANSWER", "ARGUMENT")


def stretches(trained: list[int]) -> list[tuple[int, int]]:
    """(begin, end) of the tokens that are trained."""
    found = ((one, list(group)) for one, group in groupby(range(len(trained)), key=lambda index: trained[index]))
    return [(group[0], group[-1] + 1) for one, group in found if one]


def fault(tokenizer: Any, ids: list[int], trained: list[int]) -> str:
    """What is wrong with a sample; "" for nothing. Every word of the assistant's that the text has must be trained, no
    word of another's, and a mark after each answer that has one."""
    pieces = [tokenizer.decode([one]) for one in ids]
    owners = [index for index, piece in enumerate(pieces) for _ in piece]
    words = [(m.group(), owners[m.start()], owners[m.end() - 1]) for m in WORD.finditer("".join(pieces))]
    seen = Counter(word for begin, end in stretches(trained) for word in WORD.findall("".join(pieces[begin:end])))
    if wrong := [word for word in seen if word.startswith(_OTHERS)]:
        return f"trains {', '.join(wrong)}"
    whole = Counter(word for word, _, _ in words if not word.startswith(_OTHERS))
    if lost := [word for word, count in whole.items() if seen[word] < count]:
        return f"does not train {', '.join(lost)}"
    if not any(word.startswith(_ANSWERS) for word in whole):
        return "has no answer"
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for number, (word, _, end) in enumerate(words):
        following = words[number + 1] if number + 1 < len(words) else ("", len(ids), len(ids))
        if not word.startswith(_ANSWERS) or (word.startswith("ARGUMENT") and following[0].startswith("ARGUMENT")):
            continue
        marks = [index for index in range(end, following[1]) if ids[index] in special]
        if not any(trained[index] for index in marks) and (marks or not following[0]):
            return f"has no end after {word}"
    return ""


def marked_by_twin(tokenizer: Any, twin: str, row: Row, ids: list[int]) -> list[int] | None:
    """What a twin marks, without what a model never generates: tokens of the generation prompt, which some twins mark,
    and the ends of answers of which the template writes nothing. None where it writes other tokens.

    Args:
        row: in the form that the template takes.
    """
    try:
        read = _read(tokenizer, row["messages"], row, chat_template=twin, return_assistant_tokens_mask=True)
    except Exception:
        return None
    if list(read["input_ids"]) != ids:
        return None
    trained = list(read["assistant_masks"])
    for begin, end in _prompts(tokenizer, twin, row, ids):
        trained[begin:end] = [0] * (end - begin)
    for begin, end in stretches(trained):
        if not re.search(r"\w", tokenizer.decode(ids[begin:end], skip_special_tokens=True)):
            trained[begin:end] = [0] * (end - begin)
    return trained


def _prompts(tokenizer: Any, twin: str, row: Row, ids: list[int]) -> Iterator[tuple[int, int]]:
    """Where a text has generation prompts: between another's words and the assistant's, and between two answers as much
    of the plain one as the text has."""
    owners = [index for index, one in enumerate(ids) for _ in tokenizer.decode([one])]
    text = "".join(tokenizer.decode([one]) for one in ids)
    words = [(match[0], owners[match.start()], owners[match.end() - 1] + 1) for match in WORD.finditer(text)]
    for number, (former, message) in enumerate(pairwise(row["messages"])):
        said = {word for word in WORD.findall(json.dumps(former))}
        last = max((index for index, word in enumerate(words) if word[0] in said), default=None)
        if message["role"] != "assistant" or last is None:
            continue
        begin, limit = words[last][2], (*words, ("", len(ids), 0))[last + 1][1]
        end = begin
        if former["role"] != "assistant":
            with suppress(Exception):  # it refuses the messages before
                before = row["messages"][: number + 1]
                prompted = _applied(tokenizer, before, row, chat_template=twin, add_generation_prompt=True)
                end = min(limit, _shared(prompted, ids))
        if end > begin:
            yield begin, end
            continue
        prompt = _plain_prompt(tokenizer, twin, row)
        parts = (prompt[:length] for length in range(len(prompt), 0, -1))
        found = ((i, i + len(one)) for one in parts for i in range(begin, limit) if ids[i : i + len(one)] == one)
        yield from islice(found, 1)


def _plain_prompt(tokenizer: Any, twin: str, row: Row) -> list[int]:
    question = [message for message in row["messages"] if message["role"] == "user"][:1]
    plain = _applied(tokenizer, question, {}, chat_template=twin)
    prompted = _applied(tokenizer, question, {}, chat_template=twin, add_generation_prompt=True)
    return prompted[_shared(prompted, plain) :]


def _shared(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _applied(tokenizer: Any, messages: list[Row], row: Row, **more: Any) -> list[int]:
    return list(_read(tokenizer, messages, row, **more)["input_ids"])


def _read(tokenizer: Any, messages: list[Row], row: Row, **more: Any) -> Any:
    day = datetime.fromisoformat(DAY).strftime
    return tokenizer.apply_chat_template(messages, tools=row.get("tools"), return_dict=True, strftime_now=day, **more)

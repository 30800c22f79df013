"""Chat templates as published, those that the trl package ships as package data, and conversations to try them with."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from raymb.data.encode import Encoder
from raymb.data.settings import Settings
from raymb.data.shapes import Shape

Row = dict[str, Any]
_TWIN = "_training"
_BAR = "\uff5c"  # DeepSeek's
_MARK = re.compile(
    rf"<\|[^|<>\s'\"]+\|?>|<[^|<>\s'\"]+\|>|<{_BAR}[^<>]+{_BAR}>|<\|?/?[A-Za-z_]+\|?>|\[/?[A-Za-z_]+\]|<\|[^|<>]+\|>"
)
_SPECIAL = re.compile(
    rf"<\|.+>|<.+\|>|<{_BAR}.+{_BAR}>|</?s>|<[be]os>|<(start|end)_of_\w+>|<sop>|\[gMASK\]|\[/?[A-Z_]+\]"
)


@dataclass(frozen=True)
class Published:
    """A template, and the twin that marks its assistant's turns, where there is one."""

    name: str
    text: str
    twin: str | None = None


def published() -> dict[str, Published]:
    """All templates in the installed trl package; trl itself is not imported, which takes seconds and torch."""
    folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"  # type: ignore[union-attr,arg-type]
    texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jinja"))}
    return {
        name: Published(name, text, texts.get(name + _TWIN)) for name, text in texts.items() if not name.endswith(_TWIN)
    }


def template_marks(template: str) -> tuple[list[str], list[str]]:
    """(special, other) marks that a template writes, which are tokens of its model."""
    marks = sorted({*_MARK.findall(template), "<s>", "<|endoftext|>"})
    special = [mark for mark in marks if _SPECIAL.fullmatch(mark)]
    return special, [mark for mark in marks if mark not in special]


def small_tokenizer(template: str, twin: str | None = None) -> Any:
    """A tokenizer of transformers with a token for each byte and for each mark that the template writes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    special, plain = template_marks(template + (twin or ""))
    fast.add_tokens([AddedToken(mark, special=mark in special, normalized=False) for mark in special + plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def encoder_of(template: Published, folder: Path, **changes: Any) -> Encoder:
    """An encoder with a small tokenizer, written to an empty folder, and the template.

    Args:
        changes: of the settings.
    """
    small_tokenizer(template.text, template.twin).save_pretrained(folder)
    given = {"chat_template": None, "shape": Shape(), "loss_mode": "assistant", "max_tokens": 100_000}
    return Encoder(Settings(str(folder), False, **{"long_rows": "fail", **given, **changes}))


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _says(role: str, text: str, **more: Any) -> Row:
    return {"role": role, "content": text, **more}


def _call(*cities: Any, text: str = "", **more: Any) -> Row:
    calls = [
        {"id": f"call00{i:03}", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        for i, city in enumerate(cities)
    ]
    return {"role": "assistant", "content": text, "tool_calls": calls, **more}


def _answered(text: str, call: int = 0) -> Row:
    return {"role": "tool", "content": text, "tool_call_id": f"call00{call:03}", "name": "weather"}


def _turns(count: int) -> list[Row]:
    return [
        message
        for i in range(count)
        for message in (_says("user", f"USER{i} asks this?"), _says("assistant", f"ANSWER{i} says that."))
    ]


SYSTEM = _says("system", "SYSTEM0 wants brevity.")
USER, USER1 = _turns(2)[0], _turns(2)[2]
ANSWER, ANSWER1 = _turns(2)[1], _turns(2)[3]


def _thinks(text: str, number: int) -> Row:
    return _says("assistant", f"<think>\nREASON{number} weighs it.\n</think>\n\n{text}")


CONVERSATIONS: dict[str, list[Row]] = {
    "1 turn": _turns(1),
    "2 turns": _turns(2),
    "3 turns": _turns(3),
    "system, 1 turn": [SYSTEM, *_turns(1)],
    "system, 3 turns": [SYSTEM, *_turns(3)],
    "developer, 1 turn": [_says("developer", "SYSTEM0 wants brevity."), *_turns(1)],
    "reasoning beside": [USER, {**ANSWER, "reasoning_content": "REASON0 weighs it."}],
    "reasoning beside, 2 turns": [
        USER,
        {**ANSWER, "reasoning_content": "REASON0 weighs it."},
        USER1,
        {**ANSWER1, "reasoning_content": "REASON1 weighs it."},
    ],
    "reasoning within": [USER, _thinks("ANSWER0 says that.", 0)],
    "reasoning within, 2 turns": [USER, _thinks("ANSWER0 says that.", 0), USER1, _thinks("ANSWER1 says that.", 1)],
    "tool call": [USER, _call("ARGUMENT0"), _answered("TOOL0 sunny"), ANSWER],
    "tool call last": [USER, _call("ARGUMENT0")],
    "tool call, words": [USER, _call("ARGUMENT0", text="WORDS0 first."), _answered("TOOL0 sunny"), ANSWER],
    "tool call, number": [USER, _call(5), _answered("TOOL0 sunny"), ANSWER],
    "two calls at once": [
        USER,
        _call("ARGUMENT0", "ARGUMENT1"),
        _answered("TOOL0 sunny"),
        _answered("TOOL1", 1),
        ANSWER,
    ],
    "two calls, 2 turns": [
        SYSTEM,
        USER,
        _call("ARGUMENT0"),
        _answered("TOOL0 sunny"),
        _call("ARGUMENT1"),
        _answered("TOOL1 rainy"),
        ANSWER,
        USER1,
        ANSWER1,
    ],
    "reasoning and tools": [
        USER,
        _call("ARGUMENT0", reasoning_content="REASON0 weighs it."),
        _answered("TOOL0 sunny"),
        {**ANSWER, "reasoning_content": "REASON1 weighs it."},
    ],
    "two answers": [USER, ANSWER, ANSWER1],
    "ends with a question": [*_turns(1), USER1],
    "blanks around answers": [
        USER,
        _says("assistant", "  ANSWER0 says that.\n\n"),
        USER1,
        _says("assistant", "\n\nANSWER1  says\n that. "),
    ],
    "marks in answers": [
        USER,
        _says("assistant", "ANSWER0 {END} ends"),
        USER1,
        _says("assistant", "ANSWER1 {END} ends"),
    ],
}
"""By what they try. {END} is what the template ends an answer with."""


def conversations(template: Published, render: Callable[..., str]) -> dict[str, Row]:
    """Rows; `render` makes a text of messages."""
    try:
        text = render(_turns(1))
    except Exception:  # it takes no plain conversation
        text = ""
    end = next(iter(_MARK.findall(text.rpartition("ANSWER0 says that.")[2])), "<|endoftext|>")
    rows = {}
    for name, messages in CONVERSATIONS.items():
        filled = [{**one, "content": one["content"].replace("{END}", end)} for one in messages]
        rows[name] = {"messages": filled}
        if any(one["role"] == "tool" or "tool_calls" in one for one in messages):
            rows[name]["tools"] = [TOOL]
    return rows


def forms(row: Row) -> Iterator[Row]:
    """The row in the forms that templates take: arguments of calls as objects or as JSON, contents as texts or as
    lists of parts, nothing said beside a call as "" or as null."""
    for text, parts, null in product((False, True), repeat=3):
        messages = copy.deepcopy(row["messages"])
        for message in messages:
            for call in message.get("tool_calls", ()) if text else ():
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
            if parts:
                message["content"] = [{"type": "text", "text": message["content"]}]
            elif null and not message["content"]:
                message["content"] = None
        yield {**row, "messages": messages}

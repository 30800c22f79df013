"""Every shape of a row, as the messages or texts that it becomes, and as the tokens that are trained."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from raymb.data.encode import Encoder
from raymb.data.settings import Settings
from raymb.data.shapes import Shape
from raymb.data.sources import Batch

Encode = Callable[..., list[tuple[list[int], list[int]]]]


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


TIPS = {"instruction": "Give three tips.", "input": "", "output": "1. Sleep."}
ORDER = {"instruction": "Sort.", "input": "2 1", "output": "1 2"}
BELOW = "Below is an instruction that describes a task"
TASK = "Write a response that appropriately completes the request."
ASKED_FOR_TIPS = {
    "prompt": f"{BELOW}. {TASK}\n\n### Instruction:\nGive three tips.\n\n### Response:\n",
    "completion": "1. Sleep.",
}
PAIR = {"system": "Be brief.", "prompt": "Hi", "completion": " Hello."}

# row: (what a model with a chat template is trained on, what one without)
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Alpaca": (
        TIPS | {"text": "a rendering of the other columns"},
        said(("user", "Give three tips."), ("assistant", "1. Sleep.")),
        {
            "prompt": f"{BELOW}. {TASK}\n\n### Instruction:\nGive three tips.\n\n### Response:\n",
            "completion": "1. Sleep.",
            "style": "alpaca",
        },
    ),
    "Alpaca with input": (
        ORDER,
        said(("user", "Sort.\n2 1"), ("assistant", "1 2")),
        {
            "prompt": f"{BELOW}, paired with an input that provides further context. {TASK}\n\n### Instruction:\nSort."
            "\n\n### Input:\n2 1\n\n### Response:\n",
            "completion": "1 2",
            "style": "alpaca",
        },
    ),
    "Alpaca with history and system": (
        TIPS | {"history": [["Hi", "Hello."], ["Ready?", "Yes."]], "system": "Be kind."},
        said(
            ("system", "Be kind."),
            ("user", "Hi"),
            ("assistant", "Hello."),
            ("user", "Ready?"),
            ("assistant", "Yes."),
            ("user", "Give three tips."),
            ("assistant", "1. Sleep."),
        ),
        {
            "prompt": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello.\n\n### Instruction:\nReady?\n\n"
            "### Response:\nYes.\n\n### Instruction:\nGive three tips.\n\n### Response:\n",
            "completion": "1. Sleep.",
            "style": "alpaca",
        },
    ),
    "Alpaca with nulls": (
        TIPS | {"input": None, "history": None, "system": None},
        said(("user", "Give three tips."), ("assistant", "1. Sleep.")),
        {
            "prompt": f"{BELOW}. {TASK}\n\n### Instruction:\nGive three tips.\n\n### Response:\n",
            "completion": "1. Sleep.",
            "style": "alpaca",
        },
    ),
    "question and answer": (
        {"id": 7, "question": "1+1?", "answer": "2"},
        said(("user", "1+1?"), ("assistant", "2")),
        {"prompt": "Question: 1+1?\nAnswer:", "completion": " 2", "style": "question"},
    ),
    "prompt, completion and system": (
        PAIR,
        said(("system", "Be brief."), ("user", "Hi"), ("assistant", " Hello.")),
        {"prompt": "Be brief.\n\nHi", "completion": " Hello."},
    ),
    "prompt, completion and no system": (
        PAIR | {"system": None},
        said(("user", "Hi"), ("assistant", " Hello.")),
        {"prompt": "Hi", "completion": " Hello."},
    ),
}


@pytest.mark.parametrize(("row", "chat", "plain"), [pytest.param(*case, id=name) for name, case in ROWS.items()])
def test_an_instruction(row: dict[str, Any], chat: dict[str, Any], plain: dict[str, Any]) -> None:
    assert Shape().read(row, chat=True) == chat
    assert Shape().read(row, chat=False) == plain
    assert Shape(apply_chat_template=False).read(row, chat=True) == plain


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt and completion": ({"prompt": "Hi", "completion": " Hello."}, {"prompt": "Hi", "completion": " Hello."}),
    "TRL's conversational prompt and completion": (
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello."}]},
        said(("user", "Hi"), ("assistant", "Hello.")),
    ),
    "a system column beside messages": (
        said(("user", "Hi"), ("assistant", "Hello.")) | {"system": "Be brief."},
        said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")),
    ),
    "a system column beside conversations": (
        {
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}],
            "system": "Be brief.",
        },
        said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")),
    ),
    "a system column beside a prompt of messages": (
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "completion": [{"role": "assistant", "content": "Hello."}],
            "system": "Be brief.",
        },
        said(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello.")),
    ),
    "an empty system column": (
        said(("system", "A."), ("user", "Hi"), ("assistant", "Hello.")) | {"system": ""},
        said(("system", "A."), ("user", "Hi"), ("assistant", "Hello.")),
    ),
    "messages beside the first of them": (
        {"prompt": "Hi", "prompt_id": "x", **said(("user", "Hi"), ("assistant", "Hello."))},
        said(("user", "Hi"), ("assistant", "Hello.")),
    ),
    "a document": ({"text": "Once.", "meta": {"source": "web"}}, {"text": "Once."}),
}


@pytest.mark.parametrize(("row", "read"), [pytest.param(*case, id=name) for name, case in SAME.items()])
@pytest.mark.parametrize("chat", [True, False])
def test_other_rows_are_the_same_for_every_model(row: dict[str, Any], read: dict[str, Any], chat: bool) -> None:
    assert Shape().read(row, chat=chat) == read


def test_answers_in_a_prompt_of_messages_are_not_trained() -> None:
    row = {
        "prompt": said(("user", "a"), ("assistant", "b"), ("user", "c"))["messages"],
        "completion": said(("assistant", "d"))["messages"],
    }
    assert [message.get("weight") for message in Shape().read(row)["messages"]] == [None, 0, None, None]


def test_keys_and_roles_of_messages() -> None:
    row = {"chat": [{"speaker": "Customer Care", "text": "Hi", "weight": 0}, {"speaker": "gpt", "text": "Hello."}]}
    shape = Shape(
        messages_column="chat",
        message_keys=(("role", "speaker"), ("content", "text")),
        role_names=(("user", "Customer Care"),),
    )
    assert shape.read(row) == {
        "messages": [
            {"role": "user", "content": "Hi", "weight": 0},
            {"role": "assistant", "content": "Hello."},  # a name of ShareGPT's
        ]
    }
    turned = Shape(role_names=(("assistant", "human"), ("user", "gpt")))
    row = {"conversations": [{"from": "gpt", "value": "Hi"}, {"from": "human", "value": "Hello."}]}
    assert turned.read(row) == said(("user", "Hi"), ("assistant", "Hello."))
    row = {"messages": [{"role": "asker", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    assert Shape(role_names=(("user", "asker"),)).read(row) == said(("user", "Hi"), ("assistant", "Hello."))
    row = {"messages": [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Hello."}]}
    assert Shape(message_keys=(("content", "text"),)).read(row) == said(("user", "Hi"), ("assistant", "Hello."))


def test_an_instruction_row_trains_what_its_conversation_does(encode: Encode, tokenizers: dict[str, Path]) -> None:
    model, chat = tokenizers["Qwen"], said(("user", "Sort.\n2 1"), ("assistant", "1 2"))
    assert encode(model, [ORDER]) == encode(model, [chat])
    plain = encode(model, [ORDER], shape=Shape(apply_chat_template=False))
    assert plain == encode(model, [Shape().read(ORDER, chat=False)]) != encode(model, [chat])


def test_every_token_of_a_document_is_a_target_once(encode: Encode, smollm2: Path) -> None:
    """Pieces of 8 inputs: the tokens behind the first, one after the other, are the document and its end."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = "A quick brown fox jumps over the lazy dog, and the dog goes on with what it did before: nothing at all."
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    encoder = Encoder(Settings(str(smollm2), False, None, Shape(), "assistant", 9, "fail"))
    encoded = encoder.encode(Batch("test row", range(1, 3), [{"text": text}, {"text": "Short."}], 0))
    assert encoded.problems == [] and encoded.too_long == [] and encoded.truncated == []
    ends = encoded.lengths.cumsum()
    pieces = [encoded.tokens[end - length : end].tolist() for end, length in zip(ends, encoded.lengths, strict=True)]
    mine = [piece for piece, number in zip(pieces, encoded.numbers, strict=True) if number == 1]
    assert len(mine) == -(-(len(whole) - 1) // 8) > 2 and {len(piece) for piece in mine[:-1]} == {9}
    assert [token for piece in mine for token in piece[1:]] == whole[1:] and mine[0][0] == whole[0]
    assert all(before[-1] == after[0] for before, after in pairwise(mine))
    assert encoded.trained.all() and encoded.wordings == {"prompt": 2}
    assert pieces[-1] == [*tokenizer("Short.")["input_ids"], tokenizer.eos_token_id]


def test_another_column_of_documents() -> None:
    row = {"content": "Once.", "prompt": "p", "completion": "c"}
    assert Shape(text_column="content").read(row) == {"text": "Once."}

"""Token ids and trained tokens against transformers alone: exact, on real dialogues and on random conversations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.templates import TAKE_TOOLS, TEMPLATES, marked
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from raymb.data.shapes import Shape

Encode = Callable[..., list[tuple[list[int], list[int]]]]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@functools.cache
def tokenizer_of(model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model)


def expected(model: Path, name: str, row: dict[str, Any], mode: str) -> tuple[list[int], list[int]]:
    """What transformers makes of the marked template."""
    read = tokenizer_of(model).apply_chat_template(
        row["messages"],
        tools=row.get("tools"),
        chat_template=marked(name),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, trained = read["input_ids"], read["assistant_masks"]
    if mode == "full":
        return ids, [1] * len(ids)
    if mode == "last_turn":  # the last stretch of ones
        end = len(trained) - trained[::-1].index(1)
        begin = end
        while begin and trained[begin - 1]:
            begin -= 1
        trained = [int(begin <= index < end) for index in range(len(ids))]
    return ids, trained


def conversation(turns: list[str], system: str | None = None, tools: bool = False) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    row: dict[str, Any] = {"messages": messages}
    if tools:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": turns[0]}}}
        row["messages"] = [
            *messages[: 1 + (system is not None)],
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "sunny"},
            *messages[1 + (system is not None) :],
        ]
        row["tools"] = [WEATHER]
    return row


@pytest.mark.parametrize("mode", ["assistant", "last_turn", "full"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_real_dialogues(
    name: str, mode: str, encode: Encode, tokenizers: dict[str, Path], dialogues: list[list[str]]
) -> None:
    long = [turns[: len(turns) // 2 * 2] for turns in dialogues if len(turns) > 3]
    joined = [
        list(chain.from_iterable(dialogues[i : i + 3]))[:6] for i in range(0, 300, 3)
    ]  # several topics, one conversation
    rows = [conversation(turns[:2]) for turns in dialogues[:150]] + [conversation(turns) for turns in [*long, *joined]]
    rows += [conversation(turns[:2], system="Be brief.") for turns in dialogues[150:200]]
    if name in TAKE_TOOLS:
        rows += [conversation(turns[:2], "Use tools.", tools=True) for turns in dialogues[200:220]]
        rows += [conversation(turns[:2], tools=True) for turns in dialogues[220:230]]
    rows = [row for row in rows if all(m["content"].strip() or m["role"] != "assistant" or "tool_calls" in m for m in row["messages"]) and len(row["messages"]) > 1 and row["messages"][-1]["role"] == "assistant"]  # fmt: skip  # noqa: E501
    found = encode(tokenizers[name], rows, loss_mode=mode)
    assert found == [expected(tokenizers[name], name, row, mode) for row in rows]
    print(f"\n{name}, {mode}: {len(rows)} conversations, {sum(len(ids) for ids, _ in found)} tokens")
    assert len(rows) >= 200


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(
    lambda text: text.strip() and "<|" not in text
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4), st.none() | TEXT, st.booleans())
def test_random_conversations(
    name: str,
    encode: Encode,
    tokenizers: dict[str, Path],
    pairs: list[tuple[str, str]],
    system: str | None,
    tools: bool,
) -> None:
    row = conversation([text for pair in pairs for text in pair], system, tools and name in TAKE_TOOLS)
    for mode in ("assistant", "last_turn"):
        assert encode(tokenizers[name], [row], loss_mode=mode) == [expected(tokenizers[name], name, row, mode)]


def test_a_template_with_marks_is_read_as_transformers_reads_it(
    encode: Encode, tokenizers: dict[str, Path], dialogues: list[list[str]]
) -> None:
    rows = [conversation(turns[:2], "Be brief.") for turns in dialogues[:200]]
    model = tokenizers["Llama 3"]
    for mode in ("assistant", "last_turn"):
        found = encode(model, rows, chat_template=marked("Llama 3"), loss_mode=mode)
        assert found == [expected(model, "Llama 3", row, mode) for row in rows]


@pytest.mark.parametrize("mode", ["assistant", "full"])
def test_prompt_and_completion_by_hand(
    mode: str, encode: Encode, tokenizers: dict[str, Path], dialogues: list[list[str]]
) -> None:
    model = tokenizers["SmolLM2"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    raw = [
        {"question": turns[0], "answer": turns[1], "n": i}
        for i, turns in enumerate(dialogues[:300])
        if turns[1].strip()
    ]
    shape = Shape(prompt_template="Q{n}: {question}\n{{A}}:", completion_template=" {answer}")
    expected = []
    for row in raw:
        prompt = tokenizer.encode(f"Q{row['n']}: {row['question']}\n{{A}}:", add_special_tokens=False)
        completion = [*tokenizer.encode(f" {row['answer']}", add_special_tokens=False), tokenizer.eos_token_id]
        expected.append((prompt + completion, [int(mode == "full")] * len(prompt) + [1] * len(completion)))
    assert encode(model, raw, shape=shape, loss_mode=mode) == expected
    columns = [{"q": f"Q{r['n']}: {r['question']}\n{{A}}:", "a": f" {r['answer']}"} for r in raw]
    assert encode(model, columns, shape=Shape("q", "a"), loss_mode=mode) == expected
    plain = [{"prompt": row["q"], "completion": row["a"], "other": 1} for row in columns]
    assert encode(model, plain, loss_mode=mode) == expected


def test_a_tokenizer_that_begins_texts_with_bos_does_so_once(encode: Encode, smollm2: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]
    )
    tokenizer.save_pretrained(tmp_path)
    rows = [{"prompt": "Hi", "completion": " you"}, {"prompt": f"{bos[0]}Hi", "completion": " you"}]
    (first, _), (second, _) = encode(tmp_path, rows)
    assert first == second == [bos[1], *tokenizer.encode("Hi you", add_special_tokens=False), tokenizer.eos_token_id]


def test_sharegpt_is_the_same_conversation(
    encode: Encode, tokenizers: dict[str, Path], dialogues: list[list[str]]
) -> None:
    turns = [turns[:2] for turns in dialogues[:200] if turns[1].strip()]
    messages = [conversation(pair, "Be brief.") for pair in turns]
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [
        {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in row["messages"]]}
        for row in messages
    ]
    model = tokenizers["Qwen"]
    assert encode(model, sharegpt) == encode(model, messages)
    renamed = [{"chat": row["messages"], "conversations": 1} for row in messages]
    assert encode(model, renamed, shape=Shape(messages_column="chat")) == encode(model, messages)
    parts = [
        {"messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in row["messages"]]}
        for row in messages
    ]
    assert encode(model, parts) == encode(model, messages)

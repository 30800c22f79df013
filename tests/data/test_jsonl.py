"""Every mistake in a row is a DataError that names file, line, what was found and the rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymb.data.jsonl import read_jsonl
from raymb.errors import DataError

GOOD = {"prompt": "Question: 1+1?\nAnswer:", "completion": " 2"}
CHAT = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}


def write(tmp_path: Path, *lines: object) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return file


def test_prompt_completion_rows(tmp_path: Path) -> None:
    assert read_jsonl(write(tmp_path, GOOD, GOOD | {"id": 7})) == ("prompt_completion", [GOOD, GOOD])


def test_messages_rows(tmp_path: Path) -> None:
    assert read_jsonl(write(tmp_path, CHAT)) == ("messages", [CHAT])


def test_blank_lines_byte_order_mark_and_line_separators(tmp_path: Path) -> None:
    odd = {"prompt": "a\u2028b", "completion": " \u00e9"}
    text = "\ufeff" + json.dumps(odd, ensure_ascii=False) + "\r\n\n" + json.dumps(GOOD)
    assert read_jsonl(write(tmp_path, text.encode())) == ("prompt_completion", [odd, GOOD])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "a", ', "line 2: not valid JSON"),
        (b'{"prompt": "a\xff", "completion": "b"}', "line 2: byte 0xff at position 13 is not UTF-8"),
        (b"[" * 100_000, "line 2: not"),
        (["a", "b"], 'line 2: found ["a", "b"]; each line must be a JSON object'),
        ({"prompt": "a"}, "line 2: found the keys 'prompt'; 'completion' is missing"),
        ({"question": "a", "completion": "b"}, "'prompt' is missing"),
        ({}, "found the keys (none)"),
        ({"prompt": 3, "completion": "b"}, "prompt is 3; it must be a string"),
        ({"prompt": "a", "completion": None}, "completion is null; it must be a string"),
        ({"prompt": "a", "completion": " "}, "the completion is empty"),
        (b'{"prompt": "\\ud800", "completion": "b"}', "half of a surrogate pair"),
        ({"prompt": "a", **CHAT}, "messages together with prompt or completion"),
        (CHAT, "line 2: a messages row, but line 1 is a prompt/completion row; use one kind"),
        ({"messages": []}, "messages is []; it must be a list with at least one message"),
        ({"messages": "hello"}, 'messages is "hello"'),
        ({"messages": ["hello"]}, 'messages[0] is "hello"; it must be an object with role and content'),
        ({"messages": [{"role": "user"}]}, "messages[0] is"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 'messages[0].role is "robot"'),
        ({"messages": [{"role": ["user"], "content": "a"}]}, 'messages[0].role is ["user"]'),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content is 1; it must be a string"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no message has the role assistant"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "messages[0].content is empty"),
    ],
)
def test_mistakes(tmp_path: Path, line: object, said: str) -> None:
    file = write(tmp_path, GOOD, line)
    with pytest.raises(DataError) as caught:
        read_jsonl(file)
    assert f"--dataset {file}: 1 row is wrong" in str(caught.value)
    assert said in str(caught.value)
    assert "a row is {" in caught.value.hint


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"9 rows are wrong(?s:.*)line 5: (?s:.*)and 4 more"):
        read_jsonl(write(tmp_path, *[b"{"] * 9))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_file(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="no rows in this file"):
        read_jsonl(write(tmp_path, content))

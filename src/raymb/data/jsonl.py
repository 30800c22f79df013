"""Read a JSONL file of rows and report what is wrong with it: file, line, what was found, the rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raymb.data.rows import Kind, Row
from raymb.errors import DataError

ROW_RULE = 'a row is {"prompt": text, "completion": text} or {"messages": [{"role": ..., "content": ...}, ...]}'
_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHOWN = 5  # a file with one mistake in every line must not fill the screen


class _Wrong(Exception):
    """What is wrong with one row."""


def read_jsonl(file: Path) -> tuple[Kind, list[Row]]:
    """Every row of the file. Keys that raymb does not know are left out; blank lines do not count.

    Raises:
        DataError: naming the first mistakes, one a line.
    """
    problems: list[str] = []
    rows: list[Row] = []
    first: tuple[Kind, int] | None = None
    for number, line in enumerate(_read_bytes(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            kind, row = _parse(line)
            first = first or (kind, number)
            if kind != first[0]:
                raise _Wrong(f"a {_name(kind)} row, but line {first[1]} is a {_name(first[0])} row; use one kind")
        except _Wrong as wrong:
            problems.append(f"line {number}: {wrong}")
        else:
            rows.append(row)
    if problems:
        raise _error(file, problems)
    if first is None:
        raise DataError(f"--dataset {file}: no rows in this file", ROW_RULE)
    return first[0], rows


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes().removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no mistake
    except OSError as error:
        raise DataError(f"--dataset {file}: cannot be read ({error.strerror or error})") from None


def _error(file: Path, problems: list[str]) -> DataError:
    shown = problems[:_SHOWN]
    if len(problems) > _SHOWN:
        shown.append(f"... and {len(problems) - _SHOWN:,} more")
    count = "1 row is" if len(problems) == 1 else f"{len(problems):,} rows are"
    return DataError(f"--dataset {file}: {count} wrong\n" + "\n".join(f"  {text}" for text in shown), ROW_RULE)


def _parse(line: bytes) -> tuple[Kind, Row]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _Wrong(f"byte {line[error.start]:#04x} at position {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Wrong(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _Wrong("not a row: brackets are nested too deeply") from None
    if not isinstance(value, dict):
        raise _Wrong(f"found {_shown(value)}; each line must be a JSON object")
    if "messages" in value:
        if "prompt" in value or "completion" in value:
            raise _Wrong("found messages together with prompt or completion; use one of them")
        return "messages", {"messages": _messages(value["messages"])}
    for key in ("prompt", "completion"):
        if key not in value:
            raise _Wrong(f"found the keys {', '.join(map(repr, value)) or '(none)'}; {key!r} is missing")
    prompt, completion = _text(value["prompt"], "prompt"), _text(value["completion"], "completion")
    if not completion.strip():
        raise _Wrong("the completion is empty; there is nothing to train on")
    return "prompt_completion", {"prompt": prompt, "completion": completion}


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _Wrong(f"messages is {_shown(value)}; it must be a list with at least one message")
    messages = []
    for index, message in enumerate(value):
        name = f"messages[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise _Wrong(f"{name} is {_shown(message)}; it must be an object with role and content")
        if message["role"] not in _ROLES:
            raise _Wrong(f"{name}.role is {_shown(message['role'])}; it must be one of {', '.join(_ROLES)}")
        content = _text(message["content"], f"{name}.content")
        if message["role"] == "assistant" and not content.strip():
            raise _Wrong(f"{name}.content is empty; an assistant turn is what is trained on")
        messages.append({"role": message["role"], "content": content})
    if all(message["role"] != "assistant" for message in messages):
        raise _Wrong("no message has the role assistant; there is nothing to train on")
    return messages


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{name} is {_shown(value)}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Wrong(f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is not text") from None
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(kind: Kind) -> str:
    return "messages" if kind == "messages" else "prompt/completion"

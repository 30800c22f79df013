"""What a row may look like: from one raw row of any source to the two shapes that are trained on.

    {"prompt": text, "completion": text}
    {"messages": [{"role": ..., "content": ...}, ...]}, with "tools" where the row has them

A message's content is a text; where the message has images, a list of {"type": "image"} and {"type": "text"} parts, and
"images" beside the messages says in their order where they are.

Imports no framework.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymb.spec.conflicts import template_columns

Row = dict[str, Any]
ROW_RULE = (
    'a row is {"prompt": text, "completion": text}, {"messages": [{"role": ..., "content": ...}, ...]} or ShareGPT '
    '{"conversations": [{"from": ..., "value": ...}, ...]}; name other columns with --prompt_column, '
    "--completion_column, --messages_column, or build texts with --prompt_template and --completion_template"
)
_ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}


class WrongRow(Exception):
    """What is wrong with one row."""


class EmptyAnswer(WrongRow):
    """Nothing to train on."""


@dataclass(frozen=True)
class Shape:
    """How to read a row: which columns, or which templates over columns. All None: by the keys that the row has."""

    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None
    prompt_template: str | None = None
    completion_template: str | None = None

    def read(self, raw: Any) -> Row:
        """The row in one of the two shapes.

        Raises:
            WrongRow: a column is missing or has the wrong type, or the conversation cannot be trained on.
        """
        if not isinstance(raw, Mapping):
            raise WrongRow(f"found {shown(raw)}; each row must be an object")
        if self.prompt_template is not None and self.completion_template is not None:
            texts = filled(self.prompt_template, raw), filled(self.completion_template, raw)
            return _prompt_completion(*texts, "the filled --completion_template")
        if self.messages_column:
            return _conversation(raw, self.messages_column)
        prompt, completion = self.prompt_column or "prompt", self.completion_column or "completion"
        if not (self.prompt_column or self.completion_column):
            found = [name for name in ("messages", "conversations", "conversation") if raw.get(name) is not None]
            if found and any(raw.get(name) is not None for name in (prompt, completion)):
                raise WrongRow(f"found {found[0]} together with prompt or completion; use one of them")
            if found:
                return _conversation(raw, found[0])
        for column in (prompt, completion):
            if raw.get(column) is None:
                raise WrongRow(f"{column!r} is missing; found {_keys(raw)}")
        return _prompt_completion(_text(raw[prompt], prompt), _text(raw[completion], completion), f"the {completion}")


def filled(template: str, raw: Mapping[str, Any]) -> str:
    """The template with the row's columns.

    Raises:
        WrongRow: a column is missing.
    """
    columns = template_columns(template)
    missing = [name for name in columns if raw.get(name) is None]
    if missing:
        raise WrongRow(f"{missing[0]!r} of the template is missing; found {_keys(raw)}")
    values = {name: _as_text(raw[name], name) for name in columns}
    return string.Formatter().vformat(template, (), values)


def _as_text(value: Any, name: str) -> str:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _text(value, name)


def _prompt_completion(prompt: str, completion: str, what: str) -> Row:
    if not completion.strip():
        raise EmptyAnswer(f"{what} is empty; there is nothing to train on")
    return {"prompt": prompt, "completion": completion}


def _conversation(raw: Mapping[str, Any], column: str) -> Row:
    messages = raw.get(column)
    if isinstance(messages, str):
        messages = _json(messages, column)
    if not isinstance(messages, list) or not messages:
        raise WrongRow(f"{column} is {shown(messages)}; it must be a list with at least one message")
    images: list[Any] = []
    row: Row = {"messages": [_message(one, f"{column}[{index}]", images) for index, one in enumerate(messages)]}
    _check_order(row["messages"], column)
    if images:
        row["images"] = _sources(images, raw.get("images"))
    tools = raw.get("tools")
    if tools:
        tools = _json(tools, "tools") if isinstance(tools, str) else tools
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise WrongRow(f"tools is {shown(tools)}; it must be a list of objects")
        row["tools"] = without_nulls(tools)
    return row


def _sources(images: list[Any], column: Any) -> list[Any]:
    """Where each image is: as its part says, or in their order as the row's column `images` does."""
    listed = list(column) if isinstance(column, list) else []
    if listed and len(listed) != sum(image is None for image in images):
        raise WrongRow(f"images has {len(listed)} entries for {sum(image is None for image in images)} image parts")
    found = [image if image is not None else listed.pop(0) if listed else None for image in images]
    if None in found:
        raise WrongRow(
            'an image part says no image; it is {"type": "image", "image": PATH}, or the row\'s column images has it'
        )
    return found


def _message(message: Any, name: str, images: list[Any]) -> dict[str, Any]:
    if isinstance(message, Mapping) and {"from", "value"} <= message.keys():
        role = _SHAREGPT_ROLES.get(str(message["from"]).lower())
        if role is None:
            raise WrongRow(f"{name}.from is {shown(message['from'])}; it must be one of {', '.join(_SHAREGPT_ROLES)}")
        message = {"role": role, "content": message["value"]}
    if not isinstance(message, Mapping) or "role" not in message:
        raise WrongRow(f"{name} is {shown(message)}; it must be an object with role and content")
    if message["role"] not in _ROLES:
        raise WrongRow(f"{name}.role is {shown(message['role'])}; it must be one of {', '.join(_ROLES)}")
    kept = {key: without_nulls(value) for key, value in message.items() if value is not None}
    if "content" not in kept and not kept.get("tool_calls"):
        raise WrongRow(f"{name} is {shown(message)}; it must be an object with role and content")
    kept["content"] = _content(kept.get("content", ""), f"{name}.content", images)
    if kept["role"] != "assistant":
        return kept
    if not isinstance(kept["content"], str):
        raise WrongRow(f"{name}.content has an image; an assistant answers in words")
    if not kept["content"].strip() and not kept.get("tool_calls"):
        raise EmptyAnswer(f"{name}.content is empty; an assistant turn is what is trained on")
    return kept


def _content(value: Any, name: str, images: list[Any]) -> str | list[dict[str, Any]]:
    """Text, or a list of parts as multimodal data sets have them; what says where an image is goes to `images`, None
    where the part does not say it."""
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return _text(value, name)
    parts = [_part(part, f"{name}[{index}]", images) for index, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64")


def _part(part: Mapping[str, Any], name: str, images: list[Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": _text(part.get("text"), f"{name}.text")}
    if kind not in ("image", "image_url"):
        raise WrongRow(f"{name}.type is {shown(kind)}; it must be text or image")
    key = next((key for key in _IMAGE_KEYS if part.get(key) is not None), None)
    source = part[key] if key else None
    if key == "image_url" and isinstance(source, Mapping):  # as OpenAI's clients write it
        source = source.get("url")
    images.append(f"data:;base64,{source}" if key == "base64" else source)
    return {"type": "image"}


def _check_order(messages: list[dict[str, Any]], column: str) -> None:
    roles = [message["role"] for message in messages]
    for index, role in enumerate(roles):
        name, before = f"{column}[{index}]", roles[index - 1] if index else None
        if role in ("system", "developer") and before not in (None, "system", "developer"):
            raise WrongRow(f"{name} is a {role} message, but it follows a {before} message; it must be first")
        if role == "assistant" and before in (None, "system", "developer"):
            raise WrongRow(f"{name} is an assistant message that answers no one; a user message must precede it")
        if role in ("user", "assistant") and role == before:
            raise WrongRow(f"{name} and the message before it both have the role {role}; roles must alternate")
        if role == "tool" and before not in ("assistant", "tool"):
            raise WrongRow(f"{name} is a tool message; it must follow an assistant's call")
    if "assistant" not in roles:
        raise WrongRow("no message has the role assistant; there is nothing to train on")


def without_nulls(value: Any) -> Any:
    """Columnar files give every object the keys of all objects, null where it had none: templates would print them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise WrongRow(f"{name} is {shown(text)}; a text there must be JSON") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise WrongRow(f"{name} is {shown(value)}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WrongRow(f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is not text") from None
    return value


def shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _keys(raw: Mapping[str, Any]) -> str:
    names = [name for name, value in raw.items() if value is not None]
    listed = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
    return f"the columns {listed}" if names else "no columns"

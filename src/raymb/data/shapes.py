"""What a row may look like: from one raw row of any source to the three shapes that are trained on.

    {"prompt": text, "completion": text}
    {"messages": [{"role": ..., "content": ...}, ...]}, with "tools" where the row has them
    {"text": text}, a document, all of which is trained

A message's content is a text; where the message has images, a list of {"type": "image"} and {"type": "text"} parts, and
"images" beside the messages says in their order where they are. "weight" is 0 in one that must not be trained.

Imports no framework.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymb.data.instructions import instruction_in
from raymb.data.message_values import function_call_in, tool_calls_in, weight_in, without_weights
from raymb.data.row_values import EmptyAnswer, WrongRow, columns_of, json_in, optional_text, shown, text_in
from raymb.spec.conflicts import template_columns
from raymb.spec.sections import ROLES

Row = dict[str, Any]
ROW_RULE = (
    'a row is {"messages": [{"role": ..., "content": ...}, ...]}, ShareGPT {"conversations": [{"from": ..., "value": '
    '...}, ...]}, {"prompt": ..., "completion": ...} (texts, or lists of messages), Alpaca {"instruction": ..., '
    '"output": ...}, {"question": ..., "answer": ...} or {"text": ...}; name other columns with --messages_column, '
    "--prompt_column, --completion_column, --text_column, or build texts with --prompt_template and "
    "--completion_template"
)
_TEMPLATES = "say what is asked with --prompt_template and --completion_template"
_OF_A_QUESTION = ("context", "passage", "choices", "options")
"""Columns without which a question may not be answered."""
_CONVERSATIONS = ("messages", "conversations", "conversation")

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
    "function_call": "function_call",
}


@dataclass(frozen=True)
class Shape:
    """How to read a row: which columns, or which templates over columns. All None: by the keys that the row has.

    Args:
        message_keys: (ours, theirs) pairs: which keys of a message are its role and its content.
        role_names: (ours, theirs) pairs of roles.
        apply_chat_template: rows of an instruction and its answer become messages where the model has a chat template.
    """

    prompt_column: str | None = None
    completion_column: str | None = None
    messages_column: str | None = None
    prompt_template: str | None = None
    completion_template: str | None = None
    text_column: str | None = None
    message_keys: tuple[tuple[str, str], ...] = ()
    role_names: tuple[tuple[str, str], ...] = ()
    apply_chat_template: bool = True

    def read(self, raw: Any, *, chat: bool = False) -> Row:
        """The row in one of the three shapes.

        Args:
            chat: whether the model has a chat template.

        Raises:
            WrongRow: a column is missing or has the wrong type, or the conversation cannot be trained on.
        """
        if not isinstance(raw, Mapping):
            raise WrongRow(f"found {shown(raw)}; each row must be an object")
        if self.prompt_template is not None and self.completion_template is not None:
            texts = filled(self.prompt_template, raw), filled(self.completion_template, raw)
            return _prompt_completion(*texts, "the filled --completion_template")
        if self.messages_column:
            return self._conversation(raw, self.messages_column)
        if self.text_column:
            return _document(raw, self.text_column)
        if self.prompt_column or self.completion_column:
            return self._pair(raw, self.prompt_column or "prompt", self.completion_column or "completion", chat)
        return self._by_columns(raw, chat)

    def _by_columns(self, raw: Mapping[str, Any], chat: bool) -> Row:
        """As the row's own columns say; a text beside others (a rendering of them, most often) is not looked at."""
        has = {name for name, value in raw.items() if value is not None}
        if found := [name for name in _CONVERSATIONS if name in has]:
            if {"prompt", "completion"} <= has:
                raise WrongRow(f"found {found[0]} together with prompt and completion; use one of them")
            return self._conversation(raw, found[0])
        if not {"prompt", "completion"} & has:
            if "instruction" in has:
                return self._instruction(raw, "instruction", "output", "alpaca", chat)
            if {"question", "answer"} <= has:
                if more := [name for name in _OF_A_QUESTION if name in has]:
                    raise WrongRow(f"found {more[0]!r} beside question and answer; a prompt may need it: {_TEMPLATES}")
                return self._instruction(raw, "question", "answer", "question", chat)
            if "text" in has:
                return _document(raw, "text")
        return self._pair(raw, "prompt", "completion", chat)

    def _pair(self, raw: Mapping[str, Any], prompt: str, completion: str, chat: bool) -> Row:
        """Prompt and completion: texts, or messages. Texts beside a column `system` are an instruction."""
        _check_columns(raw, prompt, completion)
        lists = [isinstance(raw[column], list) for column in (prompt, completion)]
        if all(lists):
            return self._conversation(raw, prompt, completion)
        if any(lists):
            raise WrongRow(f"one of {prompt} and {completion} is a list; both must be texts, or both lists of messages")
        if "system" in raw:
            return self._instruction(raw, prompt, completion, "prompt", chat)
        texts = text_in(raw[prompt], prompt), text_in(raw[completion], completion)
        return _prompt_completion(*texts, f"the {completion}")

    def _instruction(self, raw: Mapping[str, Any], question: str, answer: str, style: str, chat: bool) -> Row:
        _check_columns(raw, question, answer)
        read = instruction_in(raw, question, answer, style)
        return {"messages": read.as_messages()} if chat and self.apply_chat_template else read.as_texts()

    def _conversation(self, raw: Mapping[str, Any], *columns: str) -> Row:
        """The messages of a column, or of a prompt and a completion, of which the completion's are trained."""
        images: list[Any] = []
        messages: list[dict[str, Any]] = []
        names: list[str] = []
        for column in columns:
            for index, one in enumerate(_listed(raw.get(column), column)):
                name = f"{column}[{index}]"
                message = _message(self._renamed(one, name), name, images)
                if column != columns[-1] and message["role"] == "assistant":
                    message["weight"] = 0
                messages.append(message)
                names.append(name)
        _check_order(messages, names)
        trained = (message["role"] == "assistant" and message.get("weight") != 0 for message in messages)
        if len(columns) > 1 and not any(trained):
            raise WrongRow(f"the {columns[-1]} has no message with the role assistant; there is nothing to train on")
        row: Row = {"messages": _with_system(messages, raw)}
        if images:
            row["images"] = _sources(images, raw.get("images"))
        if raw.get("tools"):
            row["tools"] = _tools(raw["tools"])
        return row

    def _renamed(self, message: Any, name: str) -> Any:
        """The message with our keys and roles, where --message_keys or --role_names say what theirs are."""
        if not isinstance(message, Mapping) or not (self.message_keys or self.role_names):
            return message
        share_gpt = {"from", "value"} <= message.keys()
        keys = {"role": "from", "content": "value"} if share_gpt else {"role": "role", "content": "content"}
        keys |= dict(self.message_keys)
        if keys["role"] not in message:
            raise WrongRow(f"{name} has no {keys['role']!r}, its role; found {_keys_of(message)} (--message_keys)")
        role, theirs = message[keys["role"]], {name: role for role, name in self.role_names}
        if isinstance(role, str):
            known = _SHAREGPT_ROLES.get(role.lower(), role) if keys["role"] != "role" else role
            role = theirs.get(role, known)
        ours = {"role": role, "content": message.get(keys["content"])}
        return {key: value for key, value in message.items() if key not in keys.values()} | ours


def _keys_of(message: Mapping[str, Any]) -> str:
    return f"the keys {', '.join(map(repr, message))}" if message else "no keys"


def _check_columns(raw: Mapping[str, Any], *columns: str) -> None:
    for column in columns:
        if raw.get(column) is None:
            raise WrongRow(f"{column!r} is missing; found {columns_of(raw)}")


def filled(template: str, raw: Mapping[str, Any]) -> str:
    """The template with the row's columns.

    Raises:
        WrongRow: a column is missing.
    """
    columns = template_columns(template)
    missing = [name for name in columns if raw.get(name) is None]
    if missing:
        raise WrongRow(f"{missing[0]!r} of the template is missing; found {columns_of(raw)}")
    values = {name: _as_text(raw[name], name) for name in columns}
    return string.Formatter().vformat(template, (), values)


def _as_text(value: Any, name: str) -> str:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else text_in(value, name)


def _prompt_completion(prompt: str, completion: str, what: str) -> Row:
    if not completion.strip():
        raise EmptyAnswer(f"{what} is empty; there is nothing to train on")
    return {"prompt": prompt, "completion": completion}


def _document(raw: Mapping[str, Any], column: str) -> Row:
    _check_columns(raw, column)
    text = text_in(raw[column], column)
    if not text.strip():
        raise EmptyAnswer(f"the {column} is empty; there is nothing to train on")
    return {"text": text}


def _listed(messages: Any, column: str) -> list[Any]:
    if isinstance(messages, str):
        messages = json_in(messages, column)
    if not isinstance(messages, list) or not messages:
        raise WrongRow(f"{column} is {shown(messages)}; it must be a list with at least one message")
    return messages


def _with_system(messages: list[dict[str, Any]], raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row's column `system` in front, as a message."""
    system = optional_text(raw, "system")
    if not system:
        return messages
    if messages[0]["role"] in ("system", "developer"):
        raise WrongRow(f"found the column system together with a {messages[0]['role']} message; use one of them")
    return [{"role": "system", "content": system}, *messages]


def _tools(tools: Any) -> list[Any]:
    tools = json_in(tools, "tools") if isinstance(tools, str) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise WrongRow(f"tools is {shown(tools)}; it must be a list of objects")
    return tools


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
    weight = weight_in(message, name) if isinstance(message, Mapping) else 1
    if isinstance(message, Mapping) and {"from", "value"} <= message.keys():
        role = _SHAREGPT_ROLES.get(str(message["from"]).lower())
        if role is None:
            raise WrongRow(f"{name}.from is {shown(message['from'])}; it must be one of {', '.join(_SHAREGPT_ROLES)}")
        message = {"role": role, "content": message["value"]}
    if not isinstance(message, Mapping) or "role" not in message:
        raise WrongRow(f"{name} is {shown(message)}; it must be an object with role and content")
    if message["role"] == "function_call":
        calls = function_call_in(message.get("content"), name)
        message = {**message, "role": "assistant", "content": "", "tool_calls": calls}
    if message["role"] not in ROLES:
        raise WrongRow(f"{name}.role is {shown(message['role'])}; it must be one of {', '.join(ROLES)}")
    kept = {key: value for key, value in without_weights(message).items() if value is not None}
    if "content" not in kept and not kept.get("tool_calls"):
        raise WrongRow(f"{name} is {shown(message)}; it must be an object with role and content")
    kept["content"] = _content(kept.get("content", ""), f"{name}.content", images)
    if "tool_calls" in kept:
        kept["tool_calls"] = tool_calls_in(kept["tool_calls"], f"{name}.tool_calls")
    if not weight:
        kept["weight"] = 0
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
        return text_in(value, name)
    parts = [_part(part, f"{name}[{index}]", images) for index, part in enumerate(value)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


_IMAGE_KEYS = ("image", "image_url", "url", "path", "base64")


def _part(part: Mapping[str, Any], name: str, images: list[Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": text_in(part.get("text"), f"{name}.text")}
    if kind not in ("image", "image_url"):
        raise WrongRow(f"{name}.type is {shown(kind)}; it must be text or image")
    key = next((key for key in _IMAGE_KEYS if part.get(key) is not None), None)
    source = part[key] if key else None
    if key == "image_url" and isinstance(source, Mapping):  # as OpenAI's clients write it
        source = source.get("url")
    images.append(f"data:;base64,{source}" if key == "base64" else source)
    return {"type": "image"}


def _check_order(messages: list[dict[str, Any]], names: list[str]) -> None:
    roles = [message["role"] for message in messages]
    for index, role in enumerate(roles):
        name, before = names[index], roles[index - 1] if index else None
        if role in ("system", "developer") and before not in (None, "system", "developer"):
            raise WrongRow(f"{name} is a {role} message, but it follows a {before} message; it must be first")
        if role == "assistant" and before in (None, "system", "developer"):
            raise WrongRow(f"{name} is an assistant message that answers no one; a user message must precede it")
        if role == "user" and role == before:
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

"""What the keys of a message say beside its role and its words: tool calls, and whether it is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raymb.data.row_values import WrongRow, json_in, shown

_WEIGHTS = ("weight", "train", "loss")


def weight_in(message: Mapping[str, Any], name: str) -> int:
    """0 for a message that is not trained, 1 for any other; `weight`, `train` and `loss` say the same.

    Raises:
        WrongRow: another value.
    """
    given = {key: message[key] for key in _WEIGHTS if message.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise WrongRow(f"{name}.{key} is {shown(value)}; it must be 0 or 1, true or false")
    return int(all(given.values()))


def without_weights(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as a chat template gets it."""
    return {key: value for key, value in message.items() if key not in _WEIGHTS}


def tool_calls_in(calls: Any, name: str) -> list[Any]:
    """Tool calls with their arguments as objects, of which many data sets make JSON texts: templates that write JSON
    would write a text in quotes. A text that is none stays one.

    Raises:
        WrongRow: no list of objects.
    """
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise WrongRow(f"{name} is {shown(calls)}; it must be a list of objects")
    return [_parsed(call) for call in calls]


def _parsed(call: Mapping[str, Any]) -> dict[str, Any]:
    inner = call["function"] if isinstance(call.get("function"), Mapping) else call
    arguments = inner.get("arguments")
    if not isinstance(arguments, str):
        return dict(call)
    try:
        read = json.loads(arguments)
    except ValueError:
        return dict(call)
    if not isinstance(read, dict):
        return dict(call)
    parsed = {**inner, "arguments": read}
    return parsed if inner is call else {**call, "function": parsed}


def function_call_in(text: Any, name: str) -> list[Any]:
    """The tool calls of a message whose role is function_call: {"name": ..., "arguments": ...}, or a list of those.

    Raises:
        WrongRow: something else.
    """
    read = json_in(text, name) if isinstance(text, str) else text
    calls = read if isinstance(read, list) else [read]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise WrongRow(f'{name} is {shown(text)}; a function call is {{"name": ..., "arguments": ...}}')
    inner = [{"name": call["name"], "arguments": call.get("arguments", {})} for call in calls]
    return tool_calls_in([{"type": "function", "function": one} for one in inner], name)

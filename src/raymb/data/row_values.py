"""Values of one raw row: read as text or JSON, shown in a message, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class WrongRow(Exception):
    """What is wrong with one row."""


class EmptyAnswer(WrongRow):
    """Nothing to train on."""


def text_in(value: Any, name: str) -> str:
    """The value, which must be a text.

    Raises:
        WrongRow: it is none, or not one that UTF-8 can hold.
    """
    if not isinstance(value, str):
        raise WrongRow(f"{name} is {shown(value)}; it must be a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise WrongRow(f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is not text") from None
    return value


def optional_text(raw: Mapping[str, Any], name: str) -> str:
    """A column's text; "" where the row has none.

    Raises:
        WrongRow: it is something else.
    """
    value = raw.get(name)
    return "" if value is None else text_in(value, name)


def json_in(text: str, name: str) -> Any:
    """What a text says in JSON.

    Raises:
        WrongRow: it is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError:
        raise WrongRow(f"{name} is {shown(text)}; a text there must be JSON") from None


def shown(value: Any) -> str:
    """A value in a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def columns_of(raw: Mapping[str, Any]) -> str:
    """The columns that have a value, in words."""
    names = [name for name, value in raw.items() if value is not None]
    listed = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
    return f"the columns {listed}" if names else "no columns"

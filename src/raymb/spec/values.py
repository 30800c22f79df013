"""Kinds of values that a field of the schema can have, and what a section is."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class ShownAs:
    """What `--help` shows for a text of a form of its own, instead of TEXT."""

    word: str


class _Common:
    """Mark of a flag that most runs need."""


Common = Annotated[_Value, _Common()]
"""The value of a flag that `--help` shows without being asked for its section."""
Auto = Literal["auto"]
Size = Annotated[int, Field(ge=1)]
AutoSize = Size | Auto


def one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def comma_words(value: Any) -> Any:
    words = one_or_more(value)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return words
    return [name for word in words for name in word.replace(",", " ").split()]


Words = Annotated[list[str], BeforeValidator(one_or_more)]
"""A repeatable flag; in YAML one word or a list."""
Names = Annotated[list[str], BeforeValidator(comma_words), Field(min_length=1)]
"""Names with commas between them, or repeated; in YAML a list, too."""


def _regular(patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            rule = f"must be a regular expression: {error}"
            raise PydanticCustomError("form", "{rule}", {"rule": rule}) from error
    return patterns


Patterns = Annotated[Words, AfterValidator(_regular)]
"""Regular expressions, of which one matches a part of a name; repeatable, in YAML one or a list."""


def pairs_of(*names: str) -> BeforeValidator:
    """NAME=VALUE,NAME=VALUE, once or repeated, as a mapping; each of the names at most once."""
    rule = f"must be NAME=VALUE with commas between them, each NAME once and one of {', '.join(names)}"

    def read(value: Any) -> Any:
        if isinstance(value, Mapping):
            pairs = [(str(name), str(text)) for name, text in value.items()]
        else:
            words = [word for text in one_or_more(value) for word in str(text).split(",")]
            pairs = [(name.strip(), text.strip()) for name, _, text in (word.partition("=") for word in words)]
        given = [name for name, _ in pairs]
        if len(set(given)) < len(given) or not set(given) <= set(names) or not all(text for _, text in pairs):
            raise PydanticCustomError("form", "{rule}", {"rule": rule})
        return dict(pairs)

    return BeforeValidator(read)


def json_object(*reserved: str) -> BeforeValidator:
    """A mapping, or JSON texts of one each, of which a later one wins.

    Args:
        reserved: names that it must not have.
    """
    rule = "must be a JSON object of names and values"
    taken = f"must not name {', '.join(reserved)}"

    def read(value: Any) -> Any:
        found: dict[str, Any] = {}
        for one in value if isinstance(value, list) else [value]:
            try:
                read = json.loads(one) if isinstance(one, str) else one
            except ValueError:
                read = None
            if not isinstance(read, Mapping):
                raise PydanticCustomError("form", "{rule}", {"rule": rule})
            found |= read
        if not found.keys().isdisjoint(reserved):
            raise PydanticCustomError("form", "{rule}", {"rule": taken})
        return found

    return BeforeValidator(read)


PathOrUri = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value), ShownAs("PATH|URI")
]
"""Kept as it is written: a Path would make s3:/bucket of s3://bucket."""


def _repository(text: str) -> str:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if text.count("/") != 1:
        raise PydanticCustomError("form", "must be OWNER/NAME")
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise PydanticCustomError("form", "{rule}", {"rule": str(error)}) from None
    return text


HubRepository = Annotated[str, AfterValidator(_repository), ShownAs("OWNER/NAME")]
"""OWNER/NAME on the Hugging Face hub."""
WorkerRange = Annotated[str, Field(pattern=r"^[1-9]\d*:[1-9]\d*$"), ShownAs("MIN:MAX")]
"""MIN:MAX."""


def bridge(*paths: str, default: Any = ..., short: str | None = None, **constraints: Any) -> Any:
    """A field that owns the given ConfigContainer paths (`section.field`); none where Bridge has no field for it.

    Args:
        short: another spelling of its flag, `tp` for --tp; YAML has the field's name only.
    """
    extra: dict[str, Any] = {"bridge": list(paths)} | ({"short": short} if short else {})
    return Field(default, json_schema_extra=extra, **constraints)


def short_spelling(field: FieldInfo) -> str | None:
    extra: Any = field.json_schema_extra or {}
    return extra.get("short")


def is_common(field: FieldInfo) -> bool:
    """Whether `--help` shows the flag without being asked for its section."""
    return any(isinstance(one, _Common) for one in field.metadata)


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def written_as(pattern: str, rule: str) -> AfterValidator:
    """Text of a form; `rule` says which: "must be ..."."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise PydanticCustomError("form", "{rule}", {"rule": rule})
        return text

    return AfterValidator(check)


def bounds(text: object) -> tuple[int, int]:
    """The two numbers of LOW:HIGH; a number alone is both."""
    low, _, high = str(text).partition(":")
    return int(low), int(high or low)

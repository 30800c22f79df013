"""Which flag is meant by a name that is none: a short spelling, Megatron's name, another tool's, a slip of the pen."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any

from raymb.spec.sections import FLAG_THAT_OWNS, SECTION_OF_FLAG, SECTIONS
from raymb.spec.values import short_spelling

FLAG_OF_SHORT: dict[str, str] = {
    short: flag
    for section in SECTIONS.values()
    for flag, field in section.model_fields.items()
    if (short := short_spelling(field))
}
"""`tp` to tensor_parallel_size. YAML has the long names only."""

_SLIP = 0.85
"""Likeness from which on a name is a flag misspelt, whatever its words mean."""


def flag_meant(name: str, known: Iterable[str]) -> str | None:
    """The one of the known flags that a name most likely means; None where there is none like it.

    Args:
        name: with underscores, without dashes in front.
        known: spellings, short ones among them where these may be named.
    """
    flags = list(known)
    if name in flags and name not in FLAG_OF_SHORT:
        return name
    exact = FLAG_OF_SHORT.get(name) or _flag_of_megatron(name) or _flag_of_others(name)
    if exact in flags:
        return exact
    slip = difflib.get_close_matches(name, flags, n=1, cutoff=_SLIP)
    long = [flag for flag in flags if flag not in FLAG_OF_SHORT]  # two letters resemble too many names
    found = slip or _by_words(name, flags) or difflib.get_close_matches(name, long, n=1)
    return found[0] if found else None


def suggestion(name: str, known: Collection[str]) -> str:
    """How a message about an unknown flag goes on: what another tool's flag is here, or which flag may be meant; ""
    where nothing is like it.

    Args:
        name, known: as of flag_meant.
    """
    meaning = _meaning(name)
    if meaning and name not in FLAG_OF_SHORT and not _flag_of_megatron(name) and {*meaning.flags} <= {*known}:
        note = f": {in_flags(meaning.note)}" if meaning.note else ""
        flags = " and ".join(f"--{flag}" for flag in meaning.flags)
        what = f"is {flags} here" if flags else "has no flag here"
        # Without a flag for it, the word is explained where flags of the schema are, and nowhere else.
        if flags or {*SECTION_OF_FLAG} <= {*known}:
            return f"; {meaning.tool}'s {name} {what}{note}"
    near = flag_meant(name, known)
    return f"; did you mean --{near}?" if near else ""


def unknown_flag(word: str, known: Collection[str]) -> str:
    """What is said of a flag that is none.

    Args:
        word: as it was written.
        known: as of flag_meant.
    """
    return f"unknown flag {word}{suggestion(word.lstrip('-').replace('-', '_'), known)}"


def in_flags(note: str) -> str:
    """A note of a table for a terminal: `data.seq_length` is --seq_length."""

    def shown(match: re.Match[str]) -> str:
        word, _, value = match[1].partition(": ")
        flag = word.rpartition(".")[2]
        return f"--{flag}{' ' if value else ''}{value}" if flag in SECTION_OF_FLAG else match[1]

    return re.sub(r"`([^`]+)`", shown, note)


def _meaning(name: str) -> Any:
    """Of another tool's word (raymb.spec.other_tools.Meaning)."""
    from raymb.spec.other_tools import meaning_of  # tables that only a mistake needs

    return meaning_of(name)


def _flag_of_others(name: str) -> str | None:
    """Of another tool's word the first flag."""
    meaning = _meaning(name)
    return meaning.flags[0] if meaning and meaning.flags else None


def _flag_of_megatron(name: str) -> str | None:
    """`lr` is --learning_rate: the last part of a ConfigContainer path that a flag owns."""
    return next((flag for path, flag in FLAG_THAT_OWNS.items() if path.rpartition(".")[2] == name), None)


def _by_words(name: str, flags: list[str]) -> list[str]:
    """The flag that shares most with a name, in letters of whole words, less those of its words that the name lacks:
    --hf_dataset_name is --dataset."""
    words = set(name.split("_"))

    def shared(flag: str) -> int:
        return sum(len(word) if word in words else -len(word) for word in set(flag.split("_")))

    best = max(flags, key=shared, default="")
    return [best] if best and shared(best) > 0 else []

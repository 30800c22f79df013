"""What a table of another tool's keys is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raymb.spec.other_tools.translated import Translation

Given = dict[str, Any]
"""Keys of a file of another tool, dotted where they are nested, to values."""


class _Marker:
    """A value of its own kind, compared by identity."""


TOGETHER = _Marker()
"""As `Key.value`: several keys make one flag, in `Tool.together`."""
NOTHING = _Marker()
"""What a conversion returns for a value that asks for what raymb does anyway."""
Conversion = Callable[[Any], Any] | Mapping[Any, Any] | _Marker | None


@dataclass(frozen=True)
class Key:
    """A row of a table.

    Args:
        theirs: names that the other tool has for the same, dotted where its file is nested.
        flags: raymb's; as many as `theirs`, one each, or what every one of them says. None: raymb needs none.
        note: how they differ, or why none is needed.
        value: from their value to raymb's, or to a mapping of flags; None: the same value.
    """

    theirs: tuple[str, ...]
    flags: tuple[str, ...]
    note: str
    value: Conversion

    def flags_of(self, name: str) -> tuple[str, ...]:
        """What one of `theirs` says."""
        if len(self.flags) == len(self.theirs) > 1:
            return (self.flags[self.theirs.index(name)],)
        return self.flags


def key(theirs: str, flags: str = "", note: str = "", value: Conversion = None) -> Key:
    """A row, with names separated by spaces."""
    return Key(tuple(theirs.split()), tuple(flags.split()), note, value)


def _as_it_is(given: Given) -> Given:
    return given


def _nothing_together(given: Given, translation: Translation) -> None:
    """No keys of the tool belong together."""


@dataclass(frozen=True)
class Tool:
    """
    Args:
        name: of `raymb translate --from`.
        title: for people.
        keys: the table.
        prepare: leaves out what the file has turned off.
        together: takes over what several keys say together.
        others: why keys of a section that are in no row have no equal; by the section's name.
    """

    name: str
    title: str
    keys: tuple[Key, ...]
    prepare: Callable[[Given], Given] = _as_it_is
    together: Callable[[Given, Translation], None] = _nothing_together
    others: Mapping[str, str] | None = None

    def by_name(self) -> dict[str, Key]:
        return {name: row for row in self.keys for name in row.theirs}

    def names(self) -> Iterator[tuple[str, Key]]:
        """(the last part of a name, which a flag on a command line would have, its row)."""
        for row in self.keys:
            for name in row.theirs:
                yield name, row

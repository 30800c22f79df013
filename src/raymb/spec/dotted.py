"""Bridge's spelling `section.field` of what a flag owns: taken as the flag, where its value says the same."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from raymb.spec.sections import FLAG_THAT_OWNS, SECTION_OF_FLAG, SECTIONS


@dataclass
class Taken:
    """
    Args:
        flags: flag to value.
        rest: paths that no flag owns.
        said: a line for each that was taken.
        problems: a line for each that was not.
    """

    flags: dict[str, Any] = field(default_factory=dict)
    rest: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def taken_as_flags(overrides: Mapping[str, Any], given: Mapping[str, Any]) -> Taken:
    """
    Args:
        overrides: path to value.
        given: flags that were given at the same place, beside the paths.
    """
    taken = Taken()
    if not overrides:
        return taken
    from raymb.spec.other_tools import bridge  # tables that no other command needs
    from raymb.spec.other_tools.record import NOTHING

    for path, value in overrides.items():
        if path not in bridge.ALONE:
            problem = _owned(path)
            taken.problems += [problem] if problem else []
            taken.rest |= {} if problem else {path: value}
            continue
        flag, meant = bridge.ALONE[path], bridge.value_of(path, value)
        if meant is NOTHING:
            taken.said.append(f"{path}={_shown(value)} says no more than the default of --{flag}; left out")
            continue
        other = given.get(flag, taken.flags.get(flag))
        if other is not None and not _same(flag, other, meant):
            taken.problems.append(
                f"override {path}={_shown(value)} is --{flag}, which is given as {_shown(other)}, too; give one of them"
            )
            continue
        taken.flags[flag] = meant
        taken.said.append(f"{path}={_shown(value)} is taken as --{flag} {_shown(meant)}")
    return taken


def _same(flag: str, one: Any, other: Any) -> bool:
    section = SECTIONS[SECTION_OF_FLAG[flag]]
    try:
        values = [getattr(section.model_validate({flag: value}), flag) for value in (one, other)]
    except ValidationError:  # which is a problem of its own
        return True
    return values[0] == values[1]


def _shown(value: Any) -> str:
    """As a command line has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def _owned(path: str) -> str:
    """Why a path is refused that a flag owns, or owns a part of; "" where none does."""
    if path in _NOT_TRAINED:
        return f"override {path}: {_NOT_TRAINED[path]}; leave it out"
    flag = next((FLAG_THAT_OWNS[prefix] for prefix in _prefixes(path) if prefix in FLAG_THAT_OWNS), None)
    return f"override {path}: this field belongs to the flag --{flag}; use the flag" if flag else ""


def _prefixes(path: str) -> Iterable[str]:
    parts = path.split(".")
    return (".".join(parts[: length + 1]) for length in range(len(parts)))


_NOT_TRAINED = {
    "model.mtp_num_layers": "layers of multi-token prediction are not trained, but exported as they are in the source"
}
"""ConfigContainer paths that no run can have, and why."""

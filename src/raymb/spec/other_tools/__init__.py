"""Other tools' words: one table a tool, from which unknown flags are explained, files of theirs are translated, and the
tables of docs/coming-from.md are made."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from raymb.spec.other_tools.axolotl import AXOLOTL
from raymb.spec.other_tools.bridge import BRIDGE
from raymb.spec.other_tools.llama_factory import LLAMA_FACTORY
from raymb.spec.other_tools.ms_swift import MS_SWIFT
from raymb.spec.other_tools.nemo_rl import NEMO_RL
from raymb.spec.other_tools.others import OTHERS
from raymb.spec.other_tools.oumi import OUMI
from raymb.spec.other_tools.ray_train import RAY_TRAIN
from raymb.spec.other_tools.record import Tool
from raymb.spec.other_tools.trl import TRL

FILES: dict[str, Tool] = {tool.name: tool for tool in (OUMI, MS_SWIFT, LLAMA_FACTORY, AXOLOTL, TRL, NEMO_RL, BRIDGE)}
"""Tools whose files are translated."""
TABLES: dict[str, Tool] = {**FILES, RAY_TRAIN.name: RAY_TRAIN}
"""Tools with a table in docs/coming-from.md."""


@dataclass(frozen=True)
class Meaning:
    """
    Args:
        tool: whose word it is, for people.
        flags: raymb's for the same; none where raymb needs no such key.
        note: how they differ, or why none is needed.
    """

    tool: str
    flags: tuple[str, ...]
    note: str


@functools.cache
def _meanings() -> dict[str, Meaning]:
    """A name as a command line would have it, without the sections before it. The first table that has it counts, one
    that knows a flag before one that does not."""
    found: dict[str, Meaning] = {}
    for tool in (TRL, LLAMA_FACTORY, AXOLOTL, MS_SWIFT, OUMI, NEMO_RL, OTHERS):
        for name, row in tool.names():
            word = name.rpartition(".")[2]
            if word not in found or (row.flags and not found[word].flags):
                found[word] = Meaning(tool.title, row.flags_of(name), row.note)
    return found


def meaning_of(name: str) -> Meaning | None:
    """What a name means in other tools; None where no table has it.

    Args:
        name: with underscores, without dashes in front.
    """
    return _meanings().get(name)

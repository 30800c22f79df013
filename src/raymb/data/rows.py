"""The rows of a run: what a row may be, the split into training and validation, the content hash."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

Kind = Literal["prompt_completion", "messages"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """Checked rows of one kind.

    Args:
        kind: "prompt_completion" (`prompt`, `completion`) or "messages" (`messages` of `role`, `content`).
        train: at least one row.
        validation: empty when nothing is held out.
        source: where they came from, in words.
    """

    kind: Kind
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    source: str

    @cached_property
    def content_hash(self) -> str:
        """sha256 over kind and canonical rows: equal rows in equal order have equal hashes."""
        digest = hashlib.sha256(self.kind.encode())
        for name, rows in (("train", self.train), ("validation", self.validation)):
            digest.update(f"\n{name}\n".encode())
            for line in json_lines(rows):
                digest.update(line)
        return digest.hexdigest()

    def summary(self) -> str:
        kind = "chat" if self.kind == "messages" else "prompt/completion"
        held_out = f"{len(self.validation):,} for validation" if self.validation else "none for validation"
        return f"{len(self.train):,} {kind} rows to train on, {held_out}, from {self.source}"


def json_lines(rows: Iterable[Row]) -> Iterable[bytes]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Hold out a share of the rows; both parts keep the order of the source.

    The same rows, share and seed give the same split everywhere, so that a resumed run trains on the same rows.
    At least one row is held out when share > 0 and there are two, and at least one is left to train on.
    """
    if share <= 0 or len(rows) < 2:
        return tuple(rows), ()
    count = min(max(1, round(len(rows) * share)), len(rows) - 1)
    held_out = set(random.Random(seed).sample(range(len(rows)), count))
    return (
        tuple(row for index, row in enumerate(rows) if index not in held_out),
        tuple(row for index, row in enumerate(rows) if index in held_out),
    )

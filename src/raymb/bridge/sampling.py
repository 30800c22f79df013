"""Which rows each data parallel rank takes, batch after batch, without end. Imports no Megatron."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

PADDING = -1
"""Stands for a row without weight."""


@dataclass
class Passes:
    """Rows to train on: pass after pass over all of them, each in an order of its own. A batch at the end of a pass is
    filled from the next one.

    What a step sees depends on the rows, the seed and how many came before, so that a run that resumes, also on
    another number of workers, sees what an uninterrupted one would.

    Args:
        rows: in the data set; batch: rows in a global batch, of all ranks.
        consumed: rows of the steps so far.
        rank, copies: of the data parallel group.
        seed: of the first pass; each later one has the next number.
    """

    rows: int
    batch: int
    consumed: int
    rank: int
    copies: int
    seed: int
    _orders: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's rows of each global batch."""
        while True:
            places = range(self.consumed + self.rank, self.consumed + self.batch, self.copies)
            chosen = [self._row_at(place) for place in places]
            self.consumed += self.batch
            yield chosen

    def _row_at(self, place: int) -> int:
        number, index = divmod(place, self.rows)
        if number not in self._orders:
            generator = torch.Generator().manual_seed(self.seed + number)
            self._orders = {number: torch.randperm(self.rows, generator=generator)}
        return int(self._orders[number][index])


@dataclass(frozen=True)
class EachOnce:
    """Held-out rows: all of them in their order, the last batch padded; then again from the first.

    Args:
        rows, batch, rank, copies: as for Passes.
    """

    rows: int
    batch: int
    rank: int
    copies: int

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's rows of each global batch; PADDING behind the last row."""
        while True:
            for begin in range(0, self.rows, self.batch):
                places = range(begin + self.rank, begin + self.batch, self.copies)
                yield [place if place < self.rows else PADDING for place in places]

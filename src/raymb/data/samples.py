"""Samples out of prepared rows, for whoever asks a model instead of training it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from raymb.data.store import RowFile


@dataclass(frozen=True)
class Sample:
    """
    Args:
        ids: its tokens.
        trained: 1 where the token is a target.
        row, index, count: from which row (1 is the first), and which of that row's samples.
        images: its images, as places in images.arrow.
    """

    ids: list[int]
    trained: list[int]
    row: int
    index: int
    count: int
    images: list[int] = field(default_factory=list)

    def last_answer(self) -> tuple[list[int], list[int]]:
        """(tokens before the last trained stretch, that stretch). All after the first token, where nothing is left
        untrained."""
        targets = [0, *self.trained[1:]]  # nothing predicts the first token
        end = len(targets) - targets[::-1].index(1)
        start = end
        while targets[start - 1]:
            start -= 1
        return self.ids[:start], self.ids[start:end]


def samples_in(rows: RowFile) -> Iterator[Sample]:
    """Every sample, also of packed rows."""
    for number, row in enumerate(rows, start=1):
        count, begin = len(row["lengths"]), 0
        images = row["images"].tolist() if "images" in row else []
        for index, length in enumerate(row["lengths"].tolist(), start=1):
            stretch = slice(begin, begin + length)
            ids, trained = row["input_ids"][stretch].tolist(), row["trained"][stretch].tolist()
            yield Sample(ids, trained, number, index, count, images)
            begin += length

"""Which samples share a row: first-fit decreasing."""

from __future__ import annotations

import numpy as np


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Pack samples, the longest first, each into the first row with room for it.

    All samples of one length are placed at once: row by row as many as fit, then new rows. That is what placing them
    one by one would do, in time proportional to rows x distinct lengths.

    Args:
        lengths: tokens of each sample, 1 to capacity.
        capacity: tokens of a row.

    Returns:
        for each row the indices of its samples.
    """
    order = np.argsort(-lengths, kind="stable")
    room = np.empty(0, dtype=np.int64)
    rows = np.empty(len(lengths), dtype=np.int64)  # of each sample, in the order of `order`
    start = 0
    for length, count in zip(*_counted(lengths[order]), strict=True):
        fits = np.minimum(room // length, count)
        before = np.cumsum(fits) - fits
        taken = np.clip(count - before, 0, fits)
        left = count - int(taken.sum())
        each = capacity // length
        new = np.full(-(-left // each), each, dtype=np.int64)
        if len(new):
            new[-1] = left - each * (len(new) - 1)
        taken = np.concatenate([taken, new])
        room = np.concatenate([room, np.full(len(new), capacity, dtype=np.int64)]) - taken * length
        rows[start : start + count] = np.repeat(np.arange(len(taken)), taken)
        start += count
    by_row = np.argsort(rows, kind="stable")
    return np.split(order[by_row], np.cumsum(np.bincount(rows, minlength=len(room)))[:-1]) if len(rows) else []


def _counted(falling: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct values, counts) of a sorted array, in its order."""
    values, counts = np.unique(falling, return_counts=True)
    return values[::-1], counts[::-1]

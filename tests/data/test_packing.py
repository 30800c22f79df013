"""Packing: every sample once, no row too long, hardly a row more than the tokens need, and mixed lengths in each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymb.data.packing import mixed_rows

DISTRIBUTIONS = {
    "6 to 14": lambda random, count: random.integers(6, 15, count),
    "short dialogues": lambda random, count: random.geometric(0.04, count),
    "lognormal": lambda random, count: random.lognormal(4, 0.8, count),
    "long tail": lambda random, count: random.lognormal(4, 1.2, count),
    "up to half a row": lambda random, count: random.uniform(1, 128, count),
}


def totals(lengths: np.ndarray, order: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Tokens of each row."""
    return np.add.reduceat(lengths[order], np.cumsum(counts) - counts)


@pytest.mark.parametrize("capacity", [256, 1024])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rows_reach_the_bound_and_mix_lengths(name: str, capacity: int) -> None:
    """From 1,000 rows on at most 0.2 % more than ceil(tokens / capacity)."""
    for seed in range(3):
        drawn = DISTRIBUTIONS[name](np.random.default_rng(seed), 130_000)
        lengths = np.clip(drawn.astype(np.int64), 1, capacity)
        lengths = lengths[: np.searchsorted(np.cumsum(lengths), 1100 * capacity)]
        order, counts = mixed_rows(lengths, capacity, seed)
        bound = -(-int(lengths.sum()) // capacity)
        assert bound >= 1000 and len(counts) <= bound * 1.002
        rows = np.split(lengths[order], np.cumsum(counts)[:-1])
        several = [row for row in rows if len(row) >= 3]
        alike = sum(len(set(row.tolist())) == 1 for row in several)
        assert len(several) > 300 and alike <= 0.01 * len(several)


def test_short_samples_fill_rows_to_the_last_token() -> None:
    """First-fit decreasing needs a row more, because samples of one length leave the same remainder."""
    lengths = np.resize(np.arange(6, 15), 1792)
    assert -(-int(lengths.sum()) // 256) == 70
    assert all(len(mixed_rows(lengths, 256, seed)[1]) == 70 for seed in range(5))


@given(
    lengths=st.lists(st.integers(1, 100), max_size=300),
    capacity=st.integers(100, 130),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_and_nothing_is_too_long(lengths: list[int], capacity: int, seed: int) -> None:
    tokens = np.array(lengths, dtype=np.int64)
    order, counts = mixed_rows(tokens, capacity, seed)
    assert sorted(order.tolist()) == list(range(len(lengths))) and counts.sum() == len(lengths)
    if lengths:
        rows = totals(tokens, order, counts)
        assert counts.min() >= 1 and rows.max() <= capacity
        assert sum(rows <= capacity // 2) <= 1  # two of these would be one
    again = mixed_rows(tokens, capacity, seed)
    assert all(np.array_equal(one, other) for one, other in zip((order, counts), again, strict=True))


@given(kinds=st.lists(st.integers(1, 64), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_few_lengths_are_packed_as_tightly_as_decreasing_ones(kinds: list[int], seed: int) -> None:
    """Lengths that no mixture fills a row with: drawing at random alone would lose rows to first-fit decreasing."""
    lengths = np.random.default_rng(seed).choice(kinds, 400)
    rows: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        place = next((index for index, used in enumerate(rows) if used + length <= 64), None)
        if place is None:
            rows.append(length)
        else:
            rows[place] += length
    assert len(mixed_rows(lengths, 64, seed)[1]) <= len(rows)


def test_another_seed_is_another_mixture() -> None:
    lengths = np.random.default_rng(0).integers(5, 50, 5000)
    one, other = (mixed_rows(lengths, 512, seed)[0] for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_samples_of_one_length_are_dealt_at_random() -> None:
    """Rows of equal samples must not hold neighbours of the source together."""
    order, counts = mixed_rows(np.full(1000, 10), 100, 1)
    assert set(counts.tolist()) == {10}
    assert np.abs(np.diff(order)).mean() > 200

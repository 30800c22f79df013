"""How many rows of each data set are used, by weights as shares and as times."""

from __future__ import annotations

import numpy as np
import pytest

from raymb.data.mixing import mixed
from raymb.errors import DataError


def counts(weights: list[float | None], lengths: list[int]) -> list[int]:
    ends = np.cumsum(lengths)
    rows = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    found = mixed(["a", "b", "c"][: len(weights)], weights, rows, np.random.default_rng(0))
    for mine, chosen in zip(rows, found, strict=True):
        assert set(chosen) <= set(mine)
        times = [int((chosen == row).sum()) for row in mine]
        assert max(times, default=0) - min(times, default=0) <= 1  # none twice before all once
    return [len(chosen) for chosen in found]


@pytest.mark.parametrize(
    ("weights", "lengths", "expected"),
    [
        ([None, None], [100, 1000], [100, 1000]),
        ([0.25, 0.75], [100, 1000], [100, 300]),
        ([0.5, 0.5], [100, 30], [30, 30]),
        ([1, 1], [100, 30], [30, 30]),  # equal shares
        ([2, None], [100, 30], [200, 30]),
        ([2.5, 0.5], [100, 30], [250, 15]),
        ([1.5, 1, None], [10, 10, 10], [15, 10, 10]),
        ([0.99, 0.01], [990, 40], [990, 10]),
        ([2, None], [0, 30], [0, 30]),  # whose rows were all left out
    ],
)
def test_weights(weights: list[float | None], lengths: list[int], expected: list[int]) -> None:
    assert counts(weights, lengths) == expected


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([0.99, 0.01], "--dataset b:0.01 uses none of its 40 rows: no row is repeated, and a has 40"),
        ([2, 0.01], "--dataset b:0.01 uses none of its 40 rows"),
    ],
)
def test_a_weight_that_leaves_nothing(weights: list[float | None], said: str) -> None:
    with pytest.raises(DataError) as caught:
        counts(weights, [40, 40])
    assert caught.value.message == said

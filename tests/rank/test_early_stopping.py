"""When a validation loss counts as stalled."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymb.rank.early_stopping import has_stalled


def _stalled(losses: list[float], patience: int | None, threshold: float = 0.0) -> bool:
    return has_stalled([(10 * number, loss) for number, loss in enumerate(losses, 1)], patience, threshold)


@pytest.mark.parametrize(
    ("losses", "patience", "stalled"),
    [
        ([], 1, False),
        ([2.0], 1, False),  # the first one improves on nothing
        ([2.0, 1.9], 1, False),
        ([2.0, 2.0], 1, True),  # equal is no improvement
        ([2.0, 2.1], 1, True),
        ([2.0, 2.1], 2, False),
        ([2.0, 2.1, 2.2], 2, True),
        ([2.0, 2.1, 1.9], 2, False),
        ([2.0, 2.1, 1.9, 2.0], 2, False),  # counted from the best one
        ([2.0, 2.1, 1.9, 2.0, 1.95], 2, True),
        ([2.0, 2.1, 2.05, 1.9], 2, False),  # what counts is how it ends
    ],
)
def test_patience(losses: list[float], patience: int, stalled: bool) -> None:
    assert _stalled(losses, patience) is stalled


def test_without_patience_it_never_stalls() -> None:
    assert not _stalled([1.0] * 100, None)


def test_an_improvement_is_more_than_the_threshold() -> None:
    assert not _stalled([2.0, 1.5], 1, 0.25)
    assert _stalled([2.0, 1.5], 1, 0.5)
    slowly = [2.0, 1.75, 1.5]  # a fall that is too small leaves the best where it is, so small ones add up
    assert not _stalled(slowly, 2, 0.375)
    assert _stalled(slowly, 2, 0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_no_improvement(bad: float) -> None:
    assert _stalled([2.0, bad], 1)
    assert not _stalled([2.0, bad, 1.0], 1)
    assert _stalled([bad, bad], 2)


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4), st.integers(0, 2))
def test_it_has_stalled_when_none_of_the_last_ones_beats_all_before(
    losses: list[int], patience: int, much: int
) -> None:
    """With threshold 0 that is the whole rule; with another, losses that improve too little do not move the best."""
    best: list[float] = [math.inf]
    for loss in losses:
        best.append(loss if loss < best[-1] - much else best[-1])
    expected = len(losses) >= patience and best[-1] == best[-1 - patience]
    assert _stalled([float(loss) for loss in losses], patience, much) is expected

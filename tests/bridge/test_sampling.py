"""The order of rows: every pass is over all of them, whatever the batch, the ranks and the interruptions."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from raymb.bridge.sampling import PADDING, EachOnce, Passes

layouts = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))
"""(data parallel size, micro batch, micro batches)"""


def steps(rows: int, batch: int, copies: int, first: int, count: int, seed: int = 1234) -> list[list[int]]:
    """The rows of so many steps behind the first ones, those of all ranks in the order of the global batch."""
    ranks = [islice(Passes(rows, batch, first * batch, rank, copies, seed), count) for rank in range(copies)]
    return [[row for turn in zip(*shares, strict=True) for row in turn] for shares in zip(*ranks, strict=True)]


def test_an_epoch_of_120_rows_in_batches_of_64() -> None:
    """Bridge's own sampler never takes 30 of them, and takes 38 twice (raymb.bridge.patches.loaders)."""
    first, second = steps(120, 64, 1, 0, 2)
    seen = Counter(first + second)
    assert set(seen) == set(range(120)) and len(first + second) == 128
    assert sum(count == 2 for count in seen.values()) == 8, "the last batch is filled from the next pass"


@given(rows=st.integers(1, 60), layout=layouts, epochs=st.integers(1, 4), data=st.data())
@settings(max_examples=200, deadline=None)
def test_each_row_once_a_pass(rows: int, layout: tuple[int, int, int], epochs: int, data: st.DataObject) -> None:
    copies, micro, micro_batches = layout
    batch = copies * micro * micro_batches
    count = -(-epochs * rows // batch)  # as raymb.plan.layout has it
    taken = [row for step in steps(rows, batch, copies, 0, count) for row in step]
    for epoch in range(epochs):
        assert sorted(taken[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert len(set(taken[epochs * rows :])) == min(rows, len(taken) - epochs * rows)
    stop = data.draw(st.integers(0, count), label="steps before the interruption")
    sizes = [size for size in range(1, batch + 1) if batch % size == 0]
    others = data.draw(st.sampled_from(sizes), label="data parallel size after it")
    before = steps(rows, batch, copies, 0, stop)
    after = steps(rows, batch, others, stop, count - stop)
    assert [row for step in before + after for row in step] == taken


def test_each_pass_and_each_seed_has_an_order_of_its_own() -> None:
    taken = [step for seed in (1, 20) for step in steps(50, 50, 1, 0, 3, seed)]
    assert len({tuple(step) for step in taken}) == 6 and all(sorted(step) == list(range(50)) for step in taken)


@given(rows=st.integers(1, 60), layout=layouts)
@settings(max_examples=100, deadline=None)
def test_held_out_rows_are_taken_once_and_padded(rows: int, layout: tuple[int, int, int]) -> None:
    copies, micro, micro_batches = layout
    batch = copies * micro * micro_batches
    count = -(-rows // batch)
    ranks = [list(islice(EachOnce(rows, batch, rank, copies), 2 * count)) for rank in range(copies)]
    assert {len(share) for shares in ranks for share in shares} == {batch // copies}
    for first in (0, count):  # the next validation begins again
        taken = [row for shares in ranks for share in shares[first : first + count] for row in share]
        assert Counter(taken) == Counter(range(rows)) + Counter({PADDING: count * batch - rows})

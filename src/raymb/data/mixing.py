"""How many rows of each data set are trained on, by their weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymb.errors import DataError


def mixed(
    names: Sequence[str], weights: Sequence[float | None], rows: Sequence[np.ndarray], random: np.random.Generator
) -> list[np.ndarray]:
    """Rows of each data set as its weight says.

    Weights up to 1 are shares of the mix: so many rows in all that none is repeated, the scarcest data set is used
    whole. Where one is above 1, each says how often the rows of its data set are used, once without a weight.

    Args:
        names: of the data sets, for messages; weights: one for each, None where none was given.
        rows: indices of each data set's rows.

    Raises:
        DataError: a weight leaves nothing of a data set.
    """
    given = [weight for weight in weights if weight is not None]
    if not given:
        return list(rows)
    times = [1.0 if weight is None else weight for weight in weights]
    counts = [len(mine) for mine in rows]
    if max(given) > 1:
        wanted = [round(count * time) for count, time in zip(counts, times, strict=True)]
    else:
        whole = min(count / share for count, share in zip(counts, times, strict=True))
        wanted = [min(count, round(whole * share)) for count, share in zip(counts, times, strict=True)]
    for name, weight, count, each in zip(names, times, counts, wanted, strict=True):
        if count and not each:
            raise _nothing_left(name, weight, count, dict(zip(names, counts, strict=True)), max(given) > 1)
    return [_taken(mine, each, random) for mine, each in zip(rows, wanted, strict=True)]


def _taken(rows: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """So many rows: all of them as often as they go in, and others at random."""
    again, rest = divmod(count, len(rows)) if len(rows) else (0, 0)
    return np.concatenate([np.tile(rows, again), np.sort(random.choice(rows, rest, replace=False))])


def _nothing_left(name: str, weight: float, count: int, counts: dict[str, int], times: bool) -> DataError:
    if times:
        return DataError(f"--dataset {name}:{weight:g} uses none of its {count:,} rows", "raise its weight")
    scarce = min(counts, key=lambda one: counts[one])
    return DataError(
        f"--dataset {name}:{weight:g} uses none of its {count:,} rows: no row is repeated, and {scarce} has "
        f"{counts[scarce]:,}",
        f"raise the weight of {name}; weights above 1 repeat rows, for example {scarce}:10 and {name} without a weight",
    )

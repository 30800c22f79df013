"""The moving average that is drawn over a noisy curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from raymb.telemetry.charts import Point

FEWEST = 10
"""Points of a curve that is smoothed: with fewer, the eye needs no help."""


def half_life(points: int) -> int:
    """Steps after which a value counts half. It grows more slowly than the run, so that the average of a long run is
    both smoother and less late: 5 of 100 steps, 25 of 1,000, 116 of 10,000."""
    return max(3, round(points ** (2 / 3) / 4))


def moving_average(points: Iterable[Point], steps: float) -> Iterator[Point]:
    """An exponential moving average, divided by the sum of its weights: without that bias correction it would begin at
    a share of the first value. Gaps stay gaps and change no average.

    Args:
        steps: the half-life.
    """
    keep = 0.5 ** (1 / steps)
    total = weight = 0.0
    for x, y in points:
        if y is None or math.isnan(y):
            yield x, y
            continue
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        yield x, total / weight

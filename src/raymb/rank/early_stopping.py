"""When the validation loss no longer falls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def has_stalled(losses: Iterable[Sequence[float]], patience: int | None, threshold: float) -> bool:
    """Whether the last `patience` validations brought no improvement.

    Args:
        losses: (step, loss) of every validation, in order.
        threshold: how much lower than the best loss so far one must be to count.
    """
    best, since = float("inf"), 0
    for _, loss in losses:
        if loss < best - threshold:
            best, since = loss, 0
        else:
            since += 1
    return patience is not None and since >= patience

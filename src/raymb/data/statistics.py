"""What prepared rows are like, in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from raymb.data.store import Samples

BINS = 24


def part_statistics(
    samples: Samples, wanted: np.ndarray, packed_rows: int, seq_length: int, hashes: np.ndarray
) -> dict[str, Any]:
    """Counts of one part. A sample of n tokens has n - 1 inputs, of which the targets are trained.

    Args:
        wanted: indices of its samples.
        packed_rows: rows that they were written as.
    """
    lengths = samples.lengths[wanted].astype(np.int64)
    inputs = int(lengths.sum()) - len(lengths)
    bins = min(BINS, int(2 * len(lengths) ** (1 / 3)), int(lengths.max() - lengths.min()))  # by Rice's rule
    counts, edges = np.histogram(lengths, bins=max(1, bins))
    return {
        "rows": len(wanted),
        "packed_rows": packed_rows,
        "packing_efficiency": inputs / (packed_rows * seq_length),
        "tokens": inputs,
        "trained_tokens": _trained_tokens(samples, wanted),
        "shortest": int(lengths.min()),
        "longest": int(lengths.max()),
        "duplicate_rows": len(np.unique(wanted)) - len(np.unique(hashes[wanted])),
        "length_histogram": {"edges": [round(float(edge), 1) for edge in edges], "rows": counts.tolist()},
    }


def _trained_tokens(samples: Samples, wanted: np.ndarray) -> int:
    """Targets; the first token of a sample is none."""
    total = 0
    for start in range(0, len(wanted), 100_000):
        total += int(samples.trained[samples.places(wanted[start : start + 100_000], skip=1)].sum())
        samples.release_pages()
    return total

"""Divisors and multiples: the sizes that a rule leaves, as numbers and in words."""

from __future__ import annotations

import math


def divisors(number: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def nearest_multiples(value: int, factor: int) -> str:
    """`8 or 12` for value 10 and factor 4: the multiples on either side, without 0."""
    below = value // factor * factor
    return " or ".join(str(multiple) for multiple in (below, below + factor) if multiple)


def listed(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes[:12])

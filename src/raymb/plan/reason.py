"""Why `auto` became what it did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """
    Args:
        value: what was chosen, as a user reads it.
        text: why.
    """

    value: str
    text: str

    def __str__(self) -> str:
        return f"{self.value}: {self.text}"

"""What ranks tell the driver: records of plain values, and the function that takes one and returns at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]
"""Its `kind` says what else is in it."""
Emit = Callable[[Record], None]

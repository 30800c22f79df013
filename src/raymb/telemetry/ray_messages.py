"""What Ray says of workers and nodes that died, kept for the pages of failures instead of printed."""

from __future__ import annotations

import collections
from typing import Any

RAY_SAID: collections.deque[str] = collections.deque(maxlen=20)
"""What Ray said last of workers and nodes that died, for the pages of failures."""


def keep_what_ray_says() -> None:
    """Ray 2.60 prints that on standard output, page by page, and has no switch for it."""
    from raymb.runtime import ray_internals

    def keep(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        RAY_SAID.extend(line[:500] for words in data["lines"] for line in str(words).splitlines()[:2])

    ray_internals.replace("print_to_stdstream", keep)

"""A question to a process of our own that is given up after its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from raymb.runtime.child import Child


def ask_child(
    module: str, given: str, seconds: float, tell: Callable[[], None], settings: dict[str, str] | None = None
) -> tuple[Any, str]:
    """(its answer, None if it fails or does not answer in time; what it wrote to its standard error)

    Args:
        tell: called every second meanwhile.
        settings: environment variables besides this process's own.
    """
    deadline = time.monotonic() + seconds

    def beat() -> None:
        tell()
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer within {seconds:g} s")

    try:
        return Child(module, settings or {}).result(given, beat)
    except TimeoutError as error:
        return None, str(error)

"""Where raymb keeps on a machine what it can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """RAYMB_CACHE, else raymb/ in the user's cache directory. It need not exist."""
    if place := os.environ.get("RAYMB_CACHE"):
        return Path(place).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "raymb"

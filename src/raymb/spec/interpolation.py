"""Texts that --config would take for an interpolation of OmegaConf."""

from __future__ import annotations

import re
from typing import Any


def without_interpolation(content: Any) -> Any:
    """Texts such that --config reads them as they are: `${` begins an interpolation there, `\\${` does not."""
    if isinstance(content, dict):
        return {key: without_interpolation(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_interpolation(value) for value in content]
    return _INTERPOLATION.sub(r"\1\1\\${", content) if isinstance(content, str) else content


_INTERPOLATION = re.compile(r"(\\*)\$\{")

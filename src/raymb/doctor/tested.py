"""The set of versions that raymb was tested with: the project's own requirements/*.txt, packed into the wheel."""

from __future__ import annotations

import functools
import re
from pathlib import Path

DIRECTORY = Path(__file__).with_name("tested")
"""A link to requirements/ in the source tree, its content in a wheel."""


@functools.cache
def pinned_versions(name: str) -> dict[str, str]:
    """Package to version, by canonical name.

    Args:
        name: of the list: cpu, cuda or dev.
    """
    from packaging.utils import canonicalize_name

    text = (DIRECTORY / f"{name}.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==(\S+)", text, re.M)  # hashes are on lines of their own
    return {canonicalize_name(package): version for package, version in pins}

"""What keeps Ray from starting on this machine, or raymb from working with it, and is known before. Imports no Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raymb.errors import ClusterError

_SESSION = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""The longest name of a socket that Ray 2.60 makes below its directory."""
_LONGEST_SOCKET = 107
"""Bytes of a path that Linux takes for one."""
_ELSEWHERE = "name a short directory of your own: export RAY_TMPDIR=/tmp/ray-$USER"


@dataclass(frozen=True)
class Obstacle:
    """
    Args:
        what: the value and the rule.
        way_out: what to do about it.
        of_own: whether it is one only for a Ray that is started here, not for one that is joined.
    """

    what: str
    way_out: str
    of_own: bool = False


def prepare_environment() -> None:
    """To be called before Ray is imported. Under `uv run` Ray would start every worker by `uv run` again, in another
    environment than this one, and upload the working directory; who wants that says so by the variable."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def obstacles() -> Iterator[Obstacle]:
    """Those of this process's environment and of this machine."""
    version = os.environ.get("RAY_TRAIN_V2_ENABLED", "1")
    if version.lower() not in ("1", "true"):
        yield Obstacle(f"RAY_TRAIN_V2_ENABLED={version}: raymb trains with Ray Train V2", "unset RAY_TRAIN_V2_ENABLED")
    place = ray_directory()
    length = len(os.fsencode(place / _SESSION))
    if length > _LONGEST_SOCKET:
        room = _LONGEST_SOCKET - len(f"/ray/{_SESSION}")
        yield Obstacle(
            f"{place.parent} is too long for Ray's sockets: their paths would have {length} bytes, and Linux takes "
            f"{_LONGEST_SOCKET}; the directory may have {room}",
            _ELSEWHERE,
            of_own=True,
        )
    elif trouble := _why_unwritable(place):
        yield Obstacle(f"Ray cannot write {place}: {trouble}", _ELSEWHERE, of_own=True)


def check_start(own: bool) -> None:
    """
    Args:
        own: whether a Ray is to be started here.

    Raises:
        ClusterError: it cannot be.
    """
    for found in obstacles():
        if own or not found.of_own:
            raise ClusterError(found.what, found.way_out)


def ray_directory() -> Path:
    """Where Ray keeps sockets, logs and its store. Source: ray/_common/utils.py (get_ray_temp_dir) of Ray 2.60."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def _why_unwritable(place: Path) -> str:
    """By doing it, in the directory or in the nearest one above that exists; "" where nothing is in the way."""
    there = next(above for above in (place, *place.parents) if above.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        owner = f"{there} belongs to {_owner(there)}"
        return f"{error.strerror or error} ({owner})"
    return ""


def _owner(place: Path) -> str:
    try:
        return place.owner()
    except (KeyError, OSError):
        return "somebody without a name here"

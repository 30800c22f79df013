"""Transfers to and from a remote file system: in bounded time, several at once, files whole or not at all.

s3fs, gcsfs and adlfs ask again by themselves when a store is busy or a connection breaks (s3fs 5 times, and in each
botocore 5 times), so raymb does not. Two things are left to do: none of them ends when a server takes a request and
says nothing more (aiohttp waits for ever for "100 Continue"); and s3fs 2026.9 reads the parts of a large file once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_AT_ONCE = 4  # files; s3fs moves as many parts of a large one at once, each held in memory
_PAUSES = (1.0, 4.0)  # seconds before something is tried again
_SECONDS_FOR_AN_ANSWER = 20.0
SLOWEST = 1 << 20
"""Bytes a second, below which a transfer counts as stuck."""


class WrongSize(OSError):
    """A file at a URI is not as long as it should be."""


def side_by_side[Item, Result](action: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The results, in order. What has not begun when one fails is left out."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="raymb-remote") as pool:
        return list(pool.map(action, items))


def files_below(directory: Path) -> list[Path]:
    """Files that are whole, by name."""
    return sorted(path for path in directory.rglob("*") if not is_part(path.name) and path.is_file())


def ask(
    filesystem: Any,
    method: str,
    *words: Any,
    size: int = 0,
    seconds: float | None = None,
    pauses: Sequence[float] | None = None,
    **options: Any,
) -> Any:
    """Call a method of an fsspec file system, and again when it takes too long. Only the stores with an event loop,
    which talk to a network by themselves, can be interrupted so.

    Args:
        size: bytes that travel.
        seconds: for an answer without them.
        pauses: seconds before each further try.
    """
    limit = (_SECONDS_FOR_AN_ANSWER if seconds is None else seconds) + size / SLOWEST
    pauses = _PAUSES if pauses is None else pauses
    for pause in (*pauses, None):
        try:
            if not getattr(filesystem, "async_impl", False):
                return getattr(filesystem, method)(*words, **options)
            from fsspec.asyn import sync

            return sync(filesystem.loop, getattr(filesystem, f"_{method}"), *words, timeout=limit, **options)
        except TimeoutError as error:
            if pause is None:
                raise TimeoutError(str(error) or f"no answer within {limit:.3g} s") from None
            time.sleep(pause)


def get_whole(filesystem: Any, path: str, place: Path, size: int, exact: bool = True) -> None:
    """Download a file and move it into place.

    Args:
        exact: another size is an error.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with part_of(place) as part:
        for pause in (*_PAUSES, None):
            try:
                ask(filesystem, "get_file", path, str(part), size=size, pauses=())
                arrived = part.stat().st_size
                if exact and arrived != size:
                    raise WrongSize(f"{arrived} bytes arrived of {size}")
                break
            except (FileNotFoundError, PermissionError):
                raise
            except Exception:
                if pause is None:
                    raise
                time.sleep(pause)
        os.replace(part, place)


@contextlib.contextmanager
def part_of(place: Path) -> Iterator[Path]:
    """A temporary path beside a place; what is left there at the end is deleted."""
    part = place.with_name(name_of_part(place.name))
    try:
        yield part
    finally:
        _remove(part)


def move_directory(part: Path, place: Path) -> None:
    """Move a directory to its place, instead of whatever is there."""
    try:
        os.rename(part, place)
    except OSError:
        with part_of(place) as old:
            os.rename(place, old)
            os.rename(part, place)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def name_of_part(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.tmp"


def is_part(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None

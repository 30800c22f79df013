"""Directories below a storage path at a URI that every machine of a run needs: up once, and down once on each."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from raymb.errors import StorageError
from raymb.storage.remote import Remote, storage_root
from raymb.storage.transfer import files_below, side_by_side


def share(directory: Path, storage_path: str | Path, last: str) -> None:
    """Upload a directory, unless it is at the address. Does nothing for a local storage path.

    Args:
        last: the file that is uploaded last: where it is, all are.

    Raises:
        StorageError: it cannot be written there.
    """
    remote = Remote.of(storage_path, directory.parent.name, directory.name)
    if remote is None or remote.exists(last):
        return
    files = [file for file in files_below(directory) if file.name != last]
    side_by_side(lambda file: remote.upload(file, file.relative_to(directory).as_posix()), files)
    remote.upload(directory / last, last)


def fetch(kind: str, name: str, storage_path: str | Path, last: str, whole: Callable[[Path], bool]) -> Path:
    """The directory on this machine, downloaded if it is not there. All processes of a machine may ask at once: one
    downloads, the others wait for it.

    Args:
        kind: the directory's parent, and name: its own name.
        last: as share was told.
        whole: whether a directory is complete.

    Raises:
        StorageError: it is neither here nor at the address, or cannot be read.
    """
    home = storage_root(storage_path) / kind
    place, remote = home / name, Remote.of(storage_path, kind, name)
    if whole(place):
        return place
    if remote is None or not remote.exists(last):
        raise StorageError(f"--storage_path {storage_path}: holds no {kind}/{name}")
    home.mkdir(parents=True, exist_ok=True)
    with alone(home / f".{name}.lock") as locked:
        if not whole(place):
            for left in home.glob(f".{name}.*.tmp") if locked else ():  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            remote.download("", place)
    if not whole(place):
        raise StorageError(f"{remote.url}: this directory is damaged", "delete it there; it is made again")
    return place


@contextlib.contextmanager
def alone(file: Path) -> Iterator[bool]:
    """Wait for the other processes of this machine; one that dies lets go. False where the file system has no locks:
    several go on at once, and the last one's work stays."""
    with open(file, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True

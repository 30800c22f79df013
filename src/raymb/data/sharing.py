"""Prepared rows of a run whose storage is at a URI: up once, and down once on each machine."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from raymb.data.store import MANIFEST, read_manifest
from raymb.errors import StorageError
from raymb.storage.remote import Remote, storage_root
from raymb.storage.transfer import files_below, side_by_side

_PREPARED = "_prepared"


def share_rows(prepared_dir: Path, storage_path: str | Path) -> None:
    """Upload prepared rows, the manifest last, unless they are at the address. Does nothing for a local directory.

    Raises:
        StorageError: they cannot be written there.
    """
    remote = Remote.of(storage_path, _PREPARED, prepared_dir.name)
    if remote is None or remote.exists(MANIFEST):
        return
    files = [file for file in files_below(prepared_dir) if file.name != MANIFEST]
    side_by_side(lambda file: remote.upload(file, file.relative_to(prepared_dir).as_posix()), files)
    remote.upload(prepared_dir / MANIFEST, MANIFEST)


def fetch_rows(name: str, storage_path: str | Path) -> Path:
    """The directory of prepared rows on this machine, downloaded if it is not there. All processes of a machine may
    ask at once: one downloads, the others wait for it.

    Args:
        name: the directory's name, a hash.

    Raises:
        StorageError: they are neither here nor at the address, or cannot be read.
    """
    home = storage_root(storage_path) / _PREPARED
    place, remote = home / name, Remote.of(storage_path, _PREPARED, name)
    if read_manifest(place) is not None:
        return place
    if remote is None or not remote.exists(MANIFEST):
        raise StorageError(f"--storage_path {storage_path}: holds no prepared rows {name}")
    home.mkdir(parents=True, exist_ok=True)
    with _alone(home / f".{name}.lock") as alone:
        if read_manifest(place) is None:
            for left in home.glob(f".{name}.*.tmp") if alone else ():  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            remote.download("", place)
    if read_manifest(place) is None:
        raise StorageError(
            f"{remote.url}: these prepared rows are damaged", "delete them there; they are prepared again"
        )
    return place


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Wait for the other processes of this machine; one that dies lets go. False where the file system has no locks:
    several go on at once, and the last one's work stays."""
    with open(file, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True

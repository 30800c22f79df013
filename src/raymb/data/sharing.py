"""Prepared rows of a run whose storage is at a URI: up once, and down once on each machine."""

from __future__ import annotations

from pathlib import Path

from raymb.data.store import MANIFEST, read_manifest
from raymb.storage.sharing import fetch, share

PREPARED = "_prepared"


def share_rows(prepared_dir: Path, storage_path: str | Path) -> None:
    """Upload prepared rows (raymb.storage.sharing.share)."""
    share(prepared_dir, storage_path, MANIFEST)


def fetch_rows(name: str, storage_path: str | Path) -> Path:
    """The directory of prepared rows on this machine (raymb.storage.sharing.fetch).

    Args:
        name: the directory's name, a hash.
    """
    return fetch(PREPARED, name, storage_path, MANIFEST, lambda place: read_manifest(place) is not None)

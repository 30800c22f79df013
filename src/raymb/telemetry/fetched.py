"""Runs as directories of this machine: where they are, or for a while as copies of what lies at a URI."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from raymb.credentials import redacted
from raymb.storage.remote import Remote, is_uri
from raymb.storage.transfer import side_by_side

_LISTED = ("spec.json", "plan.json", "metrics.jsonl", "events.jsonl", "lock")  # a lock that is there counts as held
_TOLD = (*_LISTED, "data.json", "answers.jsonl")


def run_here(run: str) -> AbstractContextManager[Path]:
    """The directory of a run, or a copy of its small files.

    Args:
        run: a directory, or a URI: STORAGE_PATH/EXPERIMENT_NAME.

    Raises:
        StorageError: the URI cannot be read.
    """
    return _here(run, _fetch_run)


def storage_here(storage_path: str) -> AbstractContextManager[Path]:
    """The directory of a storage path, or copies of what a list of its runs shows.

    Raises:
        StorageError: the URI cannot be read.
    """
    return _here(storage_path, _fetch_list)


@contextmanager
def _here(asked: str, fetch: Callable[[Remote, Path], Path]) -> Iterator[Path]:
    remote = Remote.of(asked)
    if remote is None:
        yield Path(asked).expanduser().absolute()
        return
    with tempfile.TemporaryDirectory() as home:
        yield fetch(remote, Path(home))


def _fetch_run(remote: Remote, home: Path) -> Path:
    copy = home / remote.url.rpartition("/")[2]
    pages = [f"failures/{page}" for page in remote.listing("failures")]
    answers = [f"evaluation/{name}" for name in remote.listing("evaluation") if name.endswith(".jsonl")]
    _copy(remote, copy, (*_TOLD, *pages, *answers))
    return copy


def _fetch_list(remote: Remote, home: Path) -> Path:
    for name in remote.listing():
        if not name.startswith("_"):
            _copy(remote.child(name), home / name, _LISTED)
    return home


def place_of(path: Path, asked: str) -> str:
    """Where a run is, for people: its directory, or its URI."""
    return redacted(asked) if is_uri(asked) else str(path)


def _copy(remote: Remote, directory: Path, names: tuple[str, ...]) -> None:
    for name, content in zip(names, side_by_side(remote.read, names), strict=True):
        if content is not None:
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

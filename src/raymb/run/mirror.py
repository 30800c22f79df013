"""The driver's part in a run on remote storage: its small files, to and fro, and the prepared rows.

The remote is the truth. `pull` gives the workspace the run's true state before anything is checked there; a `Mirror`
pushes what the driver writes. Checkpoints, their manifests, `latest` and `best` are pushed by those who write them, who
alone know when a checkpoint is whole there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raymb.errors import RunDirError, StorageError
from raymb.run.directory import MANIFEST, POINTERS, RESHAPED, RunDir, is_iteration, made_in_checkpoints, made_in_run
from raymb.storage import lock
from raymb.storage.remote import Remote
from raymb.storage.transfer import files_below, part_of, side_by_side

_GROWN = ("metrics.jsonl", "events.jsonl", "answers.jsonl")
_POINTERS = tuple(f"checkpoints/{name}" for name in POINTERS)
_OF_A_START = ("trackers.json", "startup.json")
_SMALL = ("spec.json", "plan.json", "data.json", *_GROWN, *_OF_A_START, "checkpoints/fingerprint.json")
_APPENDED = ("failures", "logs")  # pages are numbered, and logs are continued: a new machine has to know the old ones
_TREES = ("tensorboard", *_APPENDED)


def pull(run: RunDir) -> None:
    """Give the workspace the run's small files as they are at the URI, and take away what is not there. Does
    nothing for a local run, nor in a workspace that a live driver uses, which the next check will refuse.

    An iteration directory whose checkpoint is not the one at the URI goes, too: half of it could be taken for
    a part of the other. metrics.jsonl and its like, logs and failure pages stay if they continue where the remote
    ones end: their driver crashed before a push.

    Raises:
        RunDirError: the URI cannot be read, or the workspace not be written.
    """
    if run.remote is None or lock.is_held(run.lock):
        return
    try:
        _pull(run, run.remote)
    except StorageError as error:
        raise RunDirError(error.message, error.hint) from error
    except OSError as error:
        raise RunDirError(
            f"{run.path}, which stands for --storage_path here, cannot be written ({error.strerror or error})",
            "name a directory with room for the run in the RAYMB_CACHE variable",
        ) from None


def _pull(run: RunDir, remote: Remote) -> None:
    mine = run.checkpoints.is_relative_to(run.path)  # not with --output_dir
    steps = [name for name in remote.listing("checkpoints") if is_iteration(name)] if mine else []
    names = [f"checkpoints/{step}/{MANIFEST}" for step in steps]
    names += [name for name in (*_SMALL, *_POINTERS) if mine or not name.startswith("checkpoints/")]
    grown = [f"{tree}/{name}" for tree in _APPENDED for name in remote.listing(tree)]
    contents = dict(zip(names, side_by_side(remote.read, names), strict=True))
    for directory in run.checkpoints.glob("iter_*") if mine else ():
        there = contents.get(f"checkpoints/{directory.name}/{MANIFEST}")
        if not _same_checkpoint(directory / MANIFEST, there):
            shutil.rmtree(directory, ignore_errors=True)
    for name, content in contents.items():
        _take_over(run.path / name, content, keep=name in _GROWN)
    for name, content in zip(grown, side_by_side(remote.read, grown), strict=True):
        if content is not None:
            _take_over(run.path / name, content, keep=True)


def _same_checkpoint(manifest: Path, there: bytes | None) -> bool:
    """By the files that both name, with their sizes and digests; the rest (metrics) may be written later."""
    return there is not None and manifest.is_file() and _files(manifest.read_bytes()) == _files(there)


def _files(manifest: bytes) -> Any:
    try:
        return json.loads(manifest)["files"]
    except (ValueError, KeyError, TypeError):
        return manifest


def _take_over(file: Path, content: bytes | None, keep: bool) -> None:
    """
    Args:
        keep: leave a file that begins with the content and is longer.
    """
    if content is None:
        file.unlink(missing_ok=True)
        return
    here = file.read_bytes() if file.is_file() else None
    if here == content or (keep and here is not None and here.startswith(content)):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with part_of(file) as part:
        part.write_bytes(content)
        os.replace(part, file)


class Mirror:
    """Pushes a run's small files to its URI when they have changed.

    Args:
        names: files and directories of the run directory. The default is what the driver's machine writes; a worker's
            machine may push its own logs.
    """

    def __init__(self, run: RunDir, names: Sequence[str] = (*_SMALL, *_TREES)):
        self.run, self.names = run, names
        self.pushed: dict[str, tuple[int, int]] = {}
        self.one_at_a_time = threading.Lock()

    def push(self) -> None:
        """Upload what has another size or time than at the last push.

        Raises:
            StorageError: what was not pushed is tried again in the next push.
        """
        remote = self.run.remote
        if remote is None:
            return
        with self.one_at_a_time:
            now = dict(self._stamps())
            side_by_side(
                lambda name: self._push(remote, name, now[name]),
                [name for name, stamp in now.items() if self.pushed.get(name) != stamp],
            )

    def _push(self, remote: Remote, name: str, stamp: tuple[int, int]) -> None:
        try:
            remote.upload(self.run.path / name, name)
        except StorageError:
            if (self.run.path / name).exists():
                raise
        else:
            self.pushed[name] = stamp

    def _stamps(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for name in self.names:
            place = self.run.path / name
            for file in files_below(place) if place.is_dir() else [place]:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    known = file.stat()
                    yield file.relative_to(self.run.path).as_posix(), (known.st_size, known.st_mtime_ns)


@contextlib.contextmanager
def pushing(
    run: RunDir, say: Callable[[str], None], seconds: float = 30.0, lost: threading.Event | None = None
) -> Iterator[Mirror]:
    """Push now, every so many seconds on a thread, and once more at the end. Does nothing for a local run.

    Args:
        lost: nothing is pushed once it is set: the run at the URI is another driver's.
        say: takes a sentence when a push fails. The first one raises StorageError, and so does the last one, unless
            another error is on its way.
    """
    mirror, closed = Mirror(run), threading.Event()

    def push() -> None:
        if lost is None or not lost.is_set():
            mirror.push()

    def push_or_say() -> None:
        try:
            push()
        except StorageError as error:
            say(error.message)

    def push_until_closed() -> None:
        while not closed.wait(seconds):
            push_or_say()

    push()
    if run.remote is not None:
        threading.Thread(target=push_until_closed, name="raymb-mirror", daemon=True).start()
    try:
        yield mirror
    except BaseException:
        closed.set()
        push_or_say()  # what ended the run is the news
        raise
    closed.set()
    push()


def delete_old_run(run: RunDir) -> None:
    """--overwrite at the URI: delete what raymb makes there, pointers and manifests first, and nothing else."""
    remote = run.remote
    if remote is None:
        return
    made = [f"checkpoints/{name}" for name in made_in_checkpoints(remote.listing("checkpoints"))]
    again = [f"checkpoints/{RESHAPED}/{name}" for name in remote.listing(f"checkpoints/{RESHAPED}")]
    whole = [name for name in (*made, *again) if is_iteration(name)]
    for name in made:
        if Path(name).name in POINTERS:
            remote.delete(name)
    side_by_side(remote.delete, [f"{name}/{MANIFEST}" for name in whole])
    side_by_side(remote.delete, [*made, *made_in_run(remote.listing())])

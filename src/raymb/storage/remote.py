"""Storage that is no directory: a URI that fsspec can write, such as s3://bucket/prefix.

On every node a directory stands for the URI, the workspace, with the same layout:

    RAYMB_CACHE/storage/16 HEX OF THE URI/EXPERIMENT_NAME/...
                                             /_prepared/HASH/...

A `Remote` is a URI and nothing else, so it can be pickled and used by any thread of any process. fsspec keeps one
connection for all threads of a process where a store has an event loop, and a forked child begins anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb.credentials import has_credentials, redacted
from raymb.errors import RaymbError, RunDirError, StorageError
from raymb.storage.cache import cache_directory
from raymb.storage.transfer import (
    ask,
    files_below,
    get_whole,
    is_part,
    move_directory,
    name_of_part,
    part_of,
    side_by_side,
    size_of,
)

HINT = (
    "--storage_path takes a directory, or a URI that fsspec can write (s3://bucket/prefix); credentials and "
    "endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL, ...)"
)
_PUT_IS_ATOMIC = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"))  # their listings are cached
_S3: dict[str, Any] = {"max_concurrency": 4, "default_block_size": 16 << 20}
_S3_IN_A_HURRY = {"connect_timeout": 3, "read_timeout": 5, "retries": {"max_attempts": 1}}
_SECONDS_FOR_THE_CHECK = 15.0
_SECONDS_FOR_A_TREE = 600.0  # files are deleted by the thousand


def is_uri(storage_path: str | Path) -> bool:
    return "://" in str(storage_path)


def storage_root(storage_path: str | Path) -> Path:
    """The local directory that stands for a storage path: itself, or the workspace of a URI."""
    if not is_uri(storage_path):
        return Path(storage_path).expanduser().absolute()
    return cache_directory() / "storage" / hashlib.sha256(_normal(str(storage_path)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Remote:
    """A place at a URI. Names are relative to it, with slashes; "" is the place itself.

    Every method raises StorageError with the URI and the reason when the storage fails.
    """

    url: str

    @staticmethod
    def of(storage_path: str | Path, *names: str) -> Remote | None:
        """The place of a storage path, or one below it; None for a local directory.

        Raises:
            RunDirError: the URI has a password or a token, which stores repeat in their messages.
        """
        if has_credentials(str(storage_path)):
            raise RunDirError(f"{redacted(str(storage_path))}: a URI must not have a password or a token in it", HINT)
        return Remote("/".join((_normal(str(storage_path)), *names))) if is_uri(storage_path) else None

    def child(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name.strip('/')}") if name.strip("/") else self

    def upload(self, local: Path, name: str) -> None:
        """A file, which appears whole, or all files below a directory, in no order; what else is there stays."""
        with self._errors(name, "written"):
            if not local.is_dir():
                return self._put(local, name)
            below = {path: path.relative_to(local).as_posix() for path in files_below(local)}
            side_by_side(lambda path: self._put(path, f"{name}/{below[path]}"), below)

    def download(self, name: str, local: Path) -> None:
        """A file, or all files of a tree, in the place of what was there; a reader sees the old or the new whole."""
        with self._errors(name, "read"):
            filesystem, path = self._connect(name)
            local.parent.mkdir(parents=True, exist_ok=True)
            known = ask(filesystem, "info", path)
            if known["type"] != "directory":
                # Not exact: a file that grows, such as a log, may have another size by now.
                return get_whole(filesystem, path, local, known["size"], exact=False)
            found = ask(filesystem, "find", path, detail=True)
            below = {item: item.removeprefix(path).lstrip("/") for item in found if not is_part(item)}
            with part_of(local) as part:
                part.mkdir()

                def get(item: str) -> None:
                    if below[item] and not below[item].endswith("/"):  # a folder made in a console is an empty object
                        get_whole(filesystem, item, part / below[item], found[item]["size"])

                side_by_side(get, below)
                move_directory(part, local)

    def fetch_missing(self, name: str, local_dir: Path, sizes: dict[str, int]) -> list[str]:
        """Download those files of a directory that are missing here, or are not as long as they should be.

        Args:
            sizes: name below the directory to bytes. Equal sizes are taken for equal content: whoever can meet two
                files of one name compares their checksums first.

        Returns:
            the names that were downloaded.
        """
        missing = [item for item, size in sizes.items() if size_of(local_dir / item) != size]

        def get(item: str) -> None:
            with self._errors(f"{name}/{item}", "read"):
                get_whole(*self._connect(f"{name}/{item}"), local_dir / item, sizes[item])

        side_by_side(get, missing)
        return missing

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is no such file."""
        with self._errors(name, "read"):
            filesystem, path = self._connect(name)
            try:
                return ask(filesystem, "cat_file", path)
            except (FileNotFoundError, IsADirectoryError):
                return None

    def read_text(self, name: str) -> str | None:
        content = self.read(name)
        return None if content is None else content.decode("utf-8", errors="replace")

    def write_text(self, name: str, text: str) -> None:
        with self._errors(name, "written"):
            filesystem, path = self._connect(name)
            self._whole(filesystem, path, lambda place: ask(filesystem, "pipe_file", place, text.encode()))

    def create_text(self, name: str, text: str) -> bool:
        """Write a file that is not there yet; False if it is. Where a store cannot tell in one go, two may both be
        told True: read it again to know whose it is."""
        with self._errors(name, "written"):
            filesystem, path = self._connect(name)
            if not self._puts_whole:
                filesystem.makedirs(filesystem._parent(path), exist_ok=True)
            try:
                ask(filesystem, "pipe_file", path, text.encode(), pauses=(), mode="create")
            except FileExistsError:
                return False
            except (NotImplementedError, TypeError):
                if self.exists(name):
                    return False
                ask(filesystem, "pipe_file", path, text.encode())
            return True

    def listing(self, name: str = "") -> list[str]:
        """Names directly below, sorted; none for a place that is not there."""
        with self._errors(name, "listed"):
            filesystem, path = self._connect(name)
            try:
                found = ask(filesystem, "ls", path, detail=False)
            except FileNotFoundError:
                return []
            names = {item.rstrip("/").removeprefix(path.rstrip("/")).strip("/") for item in found}
            return sorted(item for item in names if item and not is_part(item))

    def delete(self, name: str = "") -> None:
        """A file or a tree; nothing if it is not there."""
        with self._errors(name, "deleted"), contextlib.suppress(FileNotFoundError):
            filesystem, path = self._connect(name)
            if ask(filesystem, "info", path)["type"] == "directory":
                ask(filesystem, "rm", path, seconds=_SECONDS_FOR_A_TREE, recursive=True)
            else:
                ask(filesystem, "rm_file", path)

    def exists(self, name: str = "") -> bool:
        return self.version(name) is not None

    def version(self, name: str) -> str | None:
        """What the storage says of a file (time, size, checksum): another text once it has been written again. None if
        there is none."""
        with self._errors(name, "read"):
            filesystem, path = self._connect(name)
            try:
                return repr(sorted(ask(filesystem, "info", path).items()))
            except FileNotFoundError:
                return None

    def for_ray(self) -> tuple[Any, str]:
        """(pyarrow file system, path) of this place, as Ray Train takes them."""
        from pyarrow.fs import FSSpecHandler, PyFileSystem

        filesystem, path = self._connect("")
        return PyFileSystem(FSSpecHandler(filesystem)), path

    def _connect(self, name: str) -> tuple[Any, str]:
        return _connect(self.child(name).url)

    @property
    def _puts_whole(self) -> bool:
        return _scheme(self.url) in _PUT_IS_ATOMIC

    def _put(self, local: Path, name: str) -> None:
        with self._errors(name, "written"):
            filesystem, path = self._connect(name)
            size = local.stat().st_size
            self._whole(filesystem, path, lambda place: ask(filesystem, "put_file", str(local), place, size=size))

    def _whole(self, filesystem: Any, path: str, write: Callable[[str], Any]) -> None:
        """Have a file appear whole: an object does by itself, another file is written beside its place and moved."""
        if self._puts_whole:
            write(path)
            return
        folder, _, name = path.rpartition("/")
        part = f"{folder}/{name_of_part(name)}"
        filesystem.makedirs(folder, exist_ok=True)
        try:
            write(part)
            filesystem.mv(part, path)
        except BaseException:
            with contextlib.suppress(Exception):
                filesystem.rm_file(part)
            raise

    @contextlib.contextmanager
    def _errors(self, name: str, doing: str) -> Iterator[None]:
        try:
            yield
        except RaymbError:
            raise
        except Exception as error:  # each back end has its own kinds: botocore's are not even OSErrors
            raise StorageError(_cannot(self.child(name).url, doing, error), HINT) from error


def check_writable(storage_path: str | Path) -> None:
    """Write, list, read and delete a token at a URI, before a run relies on it. A directory is not looked at.

    Raises:
        RunDirError: within 15 seconds, with the URI and the reason.
    """
    remote = Remote.of(storage_path)
    if remote is None:
        return
    failed: list[str] = []
    # A thread, because a back end may keep asking for minutes whatever it is told.
    thread = threading.Thread(target=_try_out, args=(remote.url, failed), daemon=True)
    thread.start()
    thread.join(_SECONDS_FOR_THE_CHECK)
    if thread.is_alive():
        failed.append(f"--storage_path {remote.url}: no answer within {_SECONDS_FOR_THE_CHECK:g} s")
    if failed:
        raise RunDirError(failed[0], HINT)


def _try_out(url: str, failed: list[str]) -> None:
    """Into `failed`: what went wrong."""
    doing, token = "reached", uuid.uuid4().hex
    hurry = {"config_kwargs": _S3_IN_A_HURRY} if _is_s3(url) else {}
    try:
        # A connection of its own: the settings are this check's, and the environment may have changed since the last.
        filesystem, folder = _connect(f"{url}/.raymb-{token}", skip_instance_cache=True, **hurry)
        if _is_s3(url):
            filesystem.retries = 1
        doing = "written"
        if _scheme(url) not in _PUT_IS_ATOMIC:
            filesystem.makedirs(folder, exist_ok=True)
        quickly: dict[str, Any] = {"seconds": _SECONDS_FOR_THE_CHECK / 2, "pauses": ()}
        ask(filesystem, "pipe_file", f"{folder}/token", token.encode(), **quickly)
        doing = "listed"
        ask(filesystem, "ls", folder, **quickly)
        doing = "read"
        if ask(filesystem, "cat_file", f"{folder}/token", **quickly) != token.encode():
            raise OSError("something else came back than was written")
        doing = "deleted"
        ask(filesystem, "rm_file", f"{folder}/token", **quickly)
        if _scheme(url) not in _PUT_IS_ATOMIC:
            filesystem.rmdir(folder)
    except Exception as error:
        failed.append(_cannot(url, doing, error))


def _connect(url: str, **options: Any) -> tuple[Any, str]:
    """The file system, which keeps no listings, and the path there."""
    import fsspec

    if _scheme(url) in _PUT_IS_ATOMIC:
        options["use_listings_cache"] = False  # other file systems cache no listings, and some reject the option
    return fsspec.url_to_fs(url, **(_S3 if _is_s3(url) else {}), **options)


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _is_s3(url: str) -> bool:
    return _scheme(url) in ("s3", "s3a")


def _normal(uri: str) -> str:
    scheme, _, place = uri.partition("://")
    return f"{scheme}://{place.rstrip('/')}"


def _cannot(url: str, doing: str, error: Exception) -> str:
    return f"--storage_path {url}: cannot be {doing} ({_reason(error)})"


def _reason(error: Exception) -> str:
    """In one line, and with the file where the error is about a local one."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text[:300]

"""Rows read in batches: JSON lines, JSON, CSV and Parquet at any fsspec address."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

from raymb.errors import DataError

BATCH = 2000
_BLOCK = 1 << 22
FORMATS = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet")


@dataclass(frozen=True)
class Batch:
    """Raw rows in order.

    Args:
        where: "rows.jsonl line" or "org/name row", to be followed by a number.
        numbers: of each row, from 1.
        rows: JSON lines as bytes, or objects.
        size: how much of the source's size this batch is.
        columnar: nulls are what a file of columns fills up objects with, and no row wrote them.
    """

    where: str
    numbers: range
    rows: list[Any]
    size: int
    columnar: bool = False


class Source(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """In any unit; for the progress bar."""
        ...

    def fingerprint(self) -> str:
        """Equal for equal content."""
        ...

    def batches(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class File:
    """A file at a path or fsspec address; .gz, .bz2, .xz and .zst are decompressed."""

    name: str
    kind: str

    @cached_property
    def _info(self) -> dict[str, Any]:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(self.name)
        return filesystem.info(path)

    @property
    def size(self) -> int:
        return int(self._info.get("size") or 1)

    def fingerprint(self) -> str:
        """sha256 of a local file; what the store says of a remote one (its checksum, or size and time)."""
        if Path(self.name).is_file():
            with open(self.name, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        known = ("name", "size", "ETag", "etag", "mtime", "LastModified", "last_modified", "generation", "created")
        return json.dumps({key: str(self._info[key]) for key in known if key in self._info})

    def batches(self) -> Iterator[Batch]:
        with _reading(self.name):
            yield from _READERS[self.kind](self)

    def open(self) -> Any:
        import fsspec

        return cast(Any, fsspec.open(self.name, "rb", compression="infer")).open()


def kind_of(name: str) -> str | None:
    """The format of a file by its name, compression endings left out; None for one that raymb does not read."""
    parts = name.lower().rsplit("/", 1)[-1].split(".")
    if parts[-1] in ("gz", "bz2", "xz", "zst"):
        parts.pop()
    return parts[-1] if len(parts) > 1 and parts[-1] in FORMATS else None


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"--dataset {name}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise DataError(f"--dataset {name}: byte {wrong:#04x} is not UTF-8", "save the file as UTF-8") from None


def _lines(file: File) -> Iterator[Batch]:
    """Parsed by whoever encodes them, side by side."""
    first, rest, done, used = 1, b"", False, 0
    pending: list[bytes] = []
    with file.open() as stream:
        raw = getattr(stream, "raw", stream)
        while not done:
            block = stream.read(_BLOCK)
            done = not block
            lines = (rest + block).split(b"\n")
            rest = lines.pop() if not done else b""
            if first == 1 and not pending and lines:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no mistake
            pending += lines
            while len(pending) >= BATCH or (done and pending):
                now, pending = pending[:BATCH], pending[BATCH:]
                place = raw.tell() if hasattr(raw, "tell") else used
                yield Batch(f"{file.name} line", range(first, first + len(now)), now, max(0, place - used))
                first, used = first + len(now), max(used, place)


def _json(file: File) -> Iterator[Batch]:
    """A list of objects; objects one a line are read, too."""
    with file.open() as stream:
        start = stream.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        yield from _lines(file)
        return
    with file.open() as stream:
        try:
            rows = json.loads(stream.read().decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"--dataset {file.name}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            ) from None
    yield from of_objects(f"{file.name} row", rows, file.size)


def _csv(file: File) -> Iterator[Batch]:
    """All columns are text; one without a name (pandas writes its index so) is left out."""
    csv.field_size_limit(sys.maxsize)
    with file.open() as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, delimiter="\t" if file.kind == "tsv" else ",", strict=True)
        first, used = 1, 0
        try:
            _check_header(file, reader.fieldnames or ())
            while rows := [_checked(file, reader, row) for row in islice(reader, BATCH)]:
                place = min(file.size, getattr(stream, "tell", int)())
                yield Batch(f"{file.name} row", range(first, first + len(rows)), rows, max(0, place - used))
                first, used = first + len(rows), max(used, place)
        except csv.Error as error:
            raise DataError(f"--dataset {file.name}: line {reader.line_num}: not valid CSV ({error})") from None


def _check_header(file: File, columns: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
    if twice:
        raise DataError(
            f"--dataset {file.name}: {columns.count(twice[0])} columns of its first line are called {twice[0]!r}",
            "give each column a name of its own",
        )


def _checked(file: File, reader: csv.DictReader[str], row: dict[str, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise DataError(
            f"--dataset {file.name}: line {reader.line_num} has {'more' if None in row else 'fewer'} fields "
            f"than the {len(reader.fieldnames or ())} columns of the first line",
            "quote fields that hold commas, quotes or line ends",
        )
    row.pop("", None)
    return row


def _parquet(file: File) -> Iterator[Batch]:
    import pyarrow as pa
    from pyarrow import parquet

    first = 1
    with file.open() as stream:
        try:
            table = parquet.ParquetFile(stream)
            share = file.size / max(1, table.metadata.num_rows)
            for batch in table.iter_batches(batch_size=BATCH):
                rows = batch.to_pylist()
                yield Batch(f"{file.name} row", range(first, first + len(rows)), rows, int(share * len(rows)), True)
                first += len(rows)
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"--dataset {file.name}: not a readable Parquet file ({reason})") from None


_READERS = {"jsonl": _lines, "ndjson": _lines, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet}


def of_objects(where: str, rows: list[Any], size: int) -> Iterator[Batch]:
    """Rows that are in memory."""
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        yield Batch(where, range(start + 1, start + 1 + len(part)), part, size * len(part) // len(rows))


@dataclass(frozen=True)
class First:
    """The first rows of sources, one source after the other; what comes after them is not read.

    Args:
        sources: of one part.
        rows: how many; blank lines are none.
    """

    sources: Sequence[Source]
    rows: int

    @property
    def name(self) -> str:
        return self.sources[0].name

    @property
    def size(self) -> int:
        return self.rows

    def fingerprint(self) -> str:
        return json.dumps([self.rows, [source.fingerprint() for source in self.sources]])

    def batches(self) -> Iterator[Batch]:
        left = self.rows
        for source in self.sources:
            for batch in source.batches():
                kept = _cut(batch, left)
                left -= kept.size
                yield kept
                if not left:
                    return


def _cut(batch: Batch, most: int) -> Batch:
    """The batch up to so many rows; its size is how many they are."""
    rows = [index for index, row in enumerate(batch.rows) if not isinstance(row, bytes) or row.strip()][:most]
    end = rows[-1] + 1 if rows else 0
    return replace(batch, numbers=batch.numbers[:end], rows=batch.rows[:end], size=len(rows))

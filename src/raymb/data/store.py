"""Prepared rows on disk: Arrow files that a training process maps, and the manifest that says what they are.

STORAGE_PATH/_prepared/HASH/
    train.arrow, validation.arrow, test.arrow
    images.arrow        where rows have images: each image once, as its file has it (column content)
    manifest.json       written last; without it nothing here counts

Columns: input_ids (int32) and trained (uint8, 1 where the token is a target), the samples of a row one after the other;
lengths (int32), the tokens of each. A row holds one sample, or several if it is packed. Where rows have images: images
(int32), which of images.arrow's.
"""

from __future__ import annotations

import bisect
import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

MANIFEST = "manifest.json"
IMAGES = "images.arrow"
_ROWS_IN_A_BATCH = 512
_IMAGES_IN_A_BATCH = 64
_SCHEMA = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.uint8())), ("lengths", pa.list_(pa.int32()))]
)
_WITH_IMAGES = _SCHEMA.append(pa.field("images", pa.list_(pa.int32())))
_IMAGE_SCHEMA = pa.schema([("content", pa.large_binary())])


@dataclass(frozen=True)
class Samples:
    """Tokenized samples, one after the other.

    Args:
        tokens, trained: of all samples; lengths: of each.
        images: digests of each sample's images; empty where no sample has one.
    """

    tokens: np.ndarray
    trained: np.ndarray
    lengths: np.ndarray
    images: list[tuple[str, ...]] = field(default_factory=list)

    @cached_property
    def image_numbers(self) -> dict[str, int]:
        """Digest to place in images.arrow."""
        found = dict.fromkeys(digest for images in self.images for digest in images)
        return {digest: number for number, digest in enumerate(found)}

    @cached_property
    def _begins(self) -> np.ndarray:
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def places(self, chosen: np.ndarray, skip: int = 0) -> np.ndarray:
        """Where the tokens of the chosen samples are, one sample after the other, each without its first `skip`."""
        lengths = self.lengths[chosen] - skip
        return np.repeat(self._begins[chosen] + skip - (np.cumsum(lengths) - lengths), lengths) + np.arange(
            lengths.sum()
        )

    def release_pages(self) -> None:
        """Give mapped pages back, so that memory stays bounded; they are read again when they are needed."""
        for array in (self.tokens, self.trained):
            if isinstance(array, np.memmap):
                array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def write_rows(file: Path, samples: Samples, order: np.ndarray, counts: np.ndarray) -> int:
    """Write rows of samples and return the file's size in bytes.

    Args:
        order: index of every sample, row after row.
        counts: samples in each row.
    """
    row_ends = np.cumsum(counts)
    schema = _WITH_IMAGES if samples.images else _SCHEMA
    with open(file, "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        for first in range(0, len(counts), _ROWS_IN_A_BATCH):
            part = counts[first : first + _ROWS_IN_A_BATCH]
            end = row_ends[min(first + _ROWS_IN_A_BATCH, len(counts)) - 1]
            chosen = order[end - part.sum() : end]
            lengths = samples.lengths[chosen]
            places = samples.places(chosen)
            sample_ends = np.concatenate([[0], np.cumsum(part)])
            token_ends = np.concatenate([[0], np.cumsum(lengths)])[sample_ends]
            columns = [
                pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values))
                for ends, values in (
                    (token_ends, samples.tokens[places]),
                    (token_ends, samples.trained[places]),
                    (sample_ends, lengths),
                )
            ]
            if samples.images:  # and then a row is one sample
                numbers = [[samples.image_numbers[one] for one in samples.images[index]] for index in chosen]
                columns.append(pa.array(numbers, pa.list_(pa.int32())))
            writer.write_batch(pa.record_batch(columns, schema=schema))
            samples.release_pages()
    return _flushed(file)


def write_images(file: Path, samples: Samples, copies: Path) -> int:
    """Write the samples' images, each once, and return the file's size in bytes.

    Args:
        copies: directory with a file for each, named by its digest.
    """
    digests = list(samples.image_numbers)
    with open(file, "wb") as stream, pa.ipc.new_file(stream, _IMAGE_SCHEMA) as writer:
        for first in range(0, len(digests), _IMAGES_IN_A_BATCH):
            contents = [(copies / digest).read_bytes() for digest in digests[first : first + _IMAGES_IN_A_BATCH]]
            writer.write_batch(pa.record_batch([pa.array(contents, pa.large_binary())], schema=_IMAGE_SCHEMA))
    return _flushed(file)


def _flushed(file: Path) -> int:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
    return file.stat().st_size


class _Mapped:
    """An Arrow file, mapped: a row costs what is read of it."""

    def __init__(self, file: Path):
        self.reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self.batches = [self.reader.get_batch(index) for index in range(self.reader.num_record_batches)]
        self.ends = np.cumsum([batch.num_rows for batch in self.batches]).tolist()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def _place(self, index: int) -> tuple[Any, int]:
        """(record batch, row in it)."""
        number = bisect.bisect_right(self.ends, index)
        batch = self.batches[number]
        return batch, index - (self.ends[number] - batch.num_rows)


class RowFile(_Mapped):
    """Rows of a part."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """{"input_ids", "trained", "lengths"} of a row, and "images" where rows have some."""
        batch, row = self._place(index)
        return {name: batch.column(name)[row].values.to_numpy() for name in batch.schema.names}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))


class ImageFile(_Mapped):
    """Images of the rows."""

    def __getitem__(self, index: int) -> bytes:
        """What the image's own file holds."""
        batch, row = self._place(index)
        return batch.column("content")[row].as_py()


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a whole directory; None if there is none, or a file is not as long as it says."""
    try:
        content = json.loads((directory / MANIFEST).read_bytes())
        whole = all((directory / name).stat().st_size == size for name, size in content["files"].items())
        return content if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

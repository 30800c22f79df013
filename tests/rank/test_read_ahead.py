"""Reading a model's files into memory ahead of the workers."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from raymb.rank import read_ahead as module
from raymb.rank.read_ahead import read_ahead

SIZE = 40 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two files on the disk and, if the file system allows it, not in memory."""
    for number in (1, 2):
        file = tmp_path / f"model-{number}.safetensors"
        file.write_bytes(os.urandom(SIZE))
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return tmp_path


def in_memory(file: Path) -> float:
    """Share of a file's pages that are in memory, by mincore(2)."""
    pages = (SIZE + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    with open(file, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        found = (ctypes.c_ubyte * pages)()
        start = (ctypes.c_char * SIZE).from_buffer(mapped)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(SIZE), found)
        del start  # the map cannot be closed before
        assert not failed
        return sum(page & 1 for page in found) / pages


def test_all_files_are_in_memory_afterwards(model: Path) -> None:
    files = sorted(model.iterdir())
    if in_memory(files[0]) > 0.5:
        pytest.skip("this file system keeps its files in memory")
    thread = read_ahead(model)
    assert thread is not None
    thread.join(60)
    assert [in_memory(file) for file in files] == [1.0, 1.0]


def test_nothing_is_read_that_does_not_fit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_free_memory", lambda: 3 * SIZE)
    assert read_ahead(model) is None


def test_nothing_is_read_where_nothing_is(tmp_path: Path) -> None:
    assert read_ahead(tmp_path) is None


def test_a_file_that_goes_away_stops_nothing(model: Path) -> None:
    files = sorted(model.iterdir())
    files[0].unlink()
    module._read(files)

"""A model's files into this machine's memory while its workers import Megatron: one of them reads, all find them."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from raymb.model.tensor_files import weight_files

_PIECE = 16 << 20
"""Bytes read at a time."""


def read_ahead(directory: Path) -> threading.Thread | None:
    """Read a model's weights in the background; None where they would not fit into half of the free memory, or are not
    there.

    Returns:
        the thread, which nobody has to wait for: what it has not read yet, a reader reads itself.
    """
    files = weight_files(directory)
    if not files or sum(file.stat().st_size for file in files) > _free_memory() // 2:
        return None
    thread = threading.Thread(target=_read, args=(files,), name="raymb-read-ahead", daemon=True)
    thread.start()
    return thread


def _read(files: list[Path]) -> None:
    buffer = bytearray(_PIECE)
    for file in files:
        with contextlib.suppress(OSError), open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _free_memory() -> int:
    import psutil

    return psutil.virtual_memory().available

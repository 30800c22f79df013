"""The prepared files: training.jsonl and validation.jsonl, the names that Bridge's GPTSFTDatasetConfig reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raymb.data.rows import Rows, json_lines

MANIFEST = "manifest.json"


def write_rows(rows: Rows, directory: Path) -> None:
    """Write the rows unless the directory holds them already.

    The manifest is removed first and written last: where there is one, the files beside it are whole.
    """
    directory.mkdir(parents=True, exist_ok=True)
    manifest = directory / MANIFEST
    if _holds(manifest, rows.content_hash):
        return
    manifest.unlink(missing_ok=True)
    for stale in directory.glob("*.jsonl.idx*"):  # Bridge's line index of the old content
        stale.unlink()
    sizes = {}
    for name, part in (("training.jsonl", rows.train), ("validation.jsonl", rows.validation)):
        if part:
            sizes[name] = _write(directory / name, json_lines(part))
        else:
            (directory / name).unlink(missing_ok=True)
    content: dict[str, Any] = {
        "content_hash": rows.content_hash,
        "kind": rows.kind,
        "source": rows.source,
        "train_rows": len(rows.train),
        "validation_rows": len(rows.validation),
        "bytes": sizes,
    }
    _write(manifest, [json.dumps(content, indent=2).encode() + b"\n"])


def _holds(manifest: Path, content_hash: str) -> bool:
    try:
        content = json.loads(manifest.read_bytes())
        sizes = {name: (manifest.parent / name).stat().st_size for name in content["bytes"]}
        return content["content_hash"] == content_hash and content["bytes"] == sizes
    except (OSError, ValueError, KeyError, TypeError):
        return False  # no manifest, or not one of ours: write


def _write(file: Path, lines: Iterable[bytes]) -> int:
    """Write a whole file or none, and return its size."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
            size = stream.tell()
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return size

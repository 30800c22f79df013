"""Prepared files: whole or absent, and made once for one content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raymb.data import Rows, write_rows
from raymb.data.prepare import MANIFEST

ROW = {"prompt": "p", "completion": " \u00e9"}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
ROWS = Rows("prompt_completion", (ROW, ROW), (ROW,), "a test")


def test_files_and_manifest(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / "data")
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == [
        MANIFEST,
        "training.jsonl",
        "validation.jsonl",
    ]
    lines = (tmp_path / "data" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [ROW, ROW]
    manifest = json.loads((tmp_path / "data" / MANIFEST).read_text())
    assert manifest["content_hash"] == ROWS.content_hash
    assert (manifest["train_rows"], manifest["validation_rows"]) == (2, 1)


def test_messages_stay_under_their_key(tmp_path: Path) -> None:
    write_rows(Rows("messages", (CHAT,), (), "a test"), tmp_path)
    assert json.loads((tmp_path / "training.jsonl").read_text()) == CHAT


def test_same_content_is_left_alone(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path)
    index = tmp_path / "training.jsonl.idx.npy"
    index.touch()
    before = (tmp_path / "training.jsonl").stat().st_mtime_ns
    write_rows(Rows("prompt_completion", (ROW, ROW), (ROW,), "another source"), tmp_path)
    assert (tmp_path / "training.jsonl").stat().st_mtime_ns == before
    assert index.exists()


def test_other_content_replaces_everything(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path)
    (tmp_path / "training.jsonl.idx.npy").touch()
    write_rows(Rows("prompt_completion", (ROW,), (), "a test"), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [MANIFEST, "training.jsonl"]
    assert len((tmp_path / "training.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("damage", ["cut", "removed", "no manifest", "manifest cut"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    write_rows(ROWS, tmp_path)
    training, manifest = tmp_path / "training.jsonl", tmp_path / MANIFEST
    whole = training.read_bytes()
    if damage == "cut":
        training.write_bytes(whole[:5])
    elif damage == "removed":
        training.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text('{"content_')
    write_rows(ROWS, tmp_path)
    assert training.read_bytes() == whole
    assert json.loads(manifest.read_text())["content_hash"] == ROWS.content_hash


def test_hash_tells_kind_parts_and_order_apart() -> None:
    other = {"prompt": "x", "completion": "y"}
    hashes = {
        Rows("prompt_completion", train, validation, "a test").content_hash
        for train, validation in [((ROW, other), ()), ((other, ROW), ()), ((ROW,), (other,)), ((ROW,), ())]
    }
    assert len(hashes) == 4

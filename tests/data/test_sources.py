"""Where rows come from and how many of them: directories, save_to_disk, CSV, globs, #ROWS, streams."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pandas
import pytest
from datasets import Dataset, DatasetDict

from raymb.data.hub import load
from raymb.data.locate import locate, located_data
from raymb.data.sources import BATCH
from raymb.errors import DataError
from raymb.spec.sections import Data


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"p{number}", "completion": f" c{number}"} for number in range(start, start + count)]


def write(file: Path, content: list[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    return file


def read(word: object, **flags: Any) -> dict[str, list[Any]]:
    """The rows of each part."""
    found = locate(str(word), Data(**flags), chat=False).parts
    return {
        part: [json.loads(row) if isinstance(row, bytes) else row for source in sources for row in _rows(source)]
        for part, sources in found.items()
    }


def _rows(source: Any) -> list[Any]:
    return [row for batch in source.batches() for row in batch.rows if row != b""]


def test_a_directory_at_an_address_is_split_by_names_as_a_local_one(tmp_path: Path) -> None:
    contents = {"train-0.jsonl": rows(3), "train-1.jsonl": rows(2, 3), "dev.jsonl": rows(1), "test.jsonl": rows(1)}
    for name, content in contents.items():
        write(tmp_path / name, content)
        with fsspec.open(f"memory://split/{name}", "w") as stream:
            stream.write((tmp_path / name).read_text())
    (tmp_path / "notes.md").write_text("no rows")
    expected = {"train": rows(5), "validation": rows(1), "test": rows(1)}
    assert read(tmp_path) == read(f"file://{tmp_path}") == read("memory://split") == expected


@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_a_directory_of_save_to_disk(address: str, tmp_path: Path) -> None:
    Dataset.from_list(rows(5)).save_to_disk(tmp_path / "one")
    splits = {"train": Dataset.from_list(rows(4)), "validation": Dataset.from_list(rows(2, 4))}
    DatasetDict(splits).save_to_disk(tmp_path / "many")
    assert read(address.format(tmp_path / "one")) == {"train": rows(5)}
    assert read(address.format(tmp_path / "many")) == {"train": rows(4), "validation": rows(2, 4)}
    (source,) = locate(address.format(tmp_path / "one"), chat=False).parts["train"]
    before = source.fingerprint()
    shutil.rmtree(tmp_path / "one")
    Dataset.from_list(rows(6)).save_to_disk(tmp_path / "one")
    (source,) = locate(address.format(tmp_path / "one"), chat=False).parts["train"]
    assert source.fingerprint() != before


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_csv_with_the_index_that_pandas_writes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{kind}"
    pandas.DataFrame(rows(3)).to_csv(file, sep="\t" if kind == "tsv" else ",")
    assert file.read_text().startswith(("\t", ","))
    assert read(file) == {"train": rows(3)}


@pytest.mark.parametrize("word", ["part?.jsonl", "data/part?.jsonl", "./data/part?.jsonl", "data/part[12].jsonl"])
def test_a_question_mark_is_a_glob(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for place in (tmp_path, tmp_path / "data"):
        write(place / "part1.jsonl", rows(1))
        write(place / "part2.jsonl", rows(1, 1))
        write(place / "part10.jsonl", rows(1, 2))
    assert read(word) == {"train": rows(2)}


@pytest.mark.parametrize("most", [1, 3, 7, BATCH + 5])
def test_the_first_rows(most: int, tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_text("\n" + write(tmp_path / "x", rows(4)).read_text().replace("\n", "\n\n"))
    write(tmp_path / "train-1.jsonl", rows(2 * BATCH, 4))
    write(tmp_path / "dev.jsonl", rows(9))
    expected = {"train": rows(most), "validation": rows(9)}
    assert read(f"{tmp_path}#{most}") == read(tmp_path, max_samples=most) == expected
    assert read(f"{tmp_path}#{most}:0.5", max_samples=2) == expected  # what a data set says itself comes first


def test_what_is_behind_the_first_rows_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows(5))
    (tmp_path / "b.jsonl").write_bytes(b"\xff")
    assert read(f"{tmp_path}#5") == {"train": rows(5)}


def test_the_first_rows_are_other_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(9))
    prints = {locate(f"{file}{end}", chat=False).parts["train"][0].fingerprint() for end in ("", "#5", "#6")}
    assert len(prints) == 3


def test_a_file_that_is_called_like_a_word(tmp_path: Path) -> None:
    for name in ("a#5.jsonl", "b:0.5", "c.jsonl#3"):
        write(tmp_path / name, rows(4))
    assert read(tmp_path / "a#5.jsonl") == read(f"{tmp_path}/a#5.jsonl#4") == {"train": rows(4)}
    with pytest.raises(DataError, match=r"b:0\.5: the ending says no format"):
        read(tmp_path / "b:0.5")


def test_validation_rows_have_a_number_of_their_own(tmp_path: Path) -> None:
    file, other = write(tmp_path / "a.jsonl", rows(9)), write(tmp_path / "v.jsonl", rows(9, 9))
    data = Data(dataset=[str(file)], validation_dataset=f"{other}#2", max_samples=4)
    train, validation = located_data(data, chat=False)
    assert [len(_rows(train.parts["train"][0])), len(_rows(validation.parts["validation"][0]))] == [4, 2]


@pytest.fixture
def hub_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set as the hub has it, in a directory, which the datasets library takes for a hub id."""
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.jsonl", rows(BATCH + 5))
    write(tmp_path / "hub" / "test.jsonl", rows(3))
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    return str(tmp_path / "hub")


def answers(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    info = SimpleNamespace(sha="abc", main_size=size)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, *args, **settings: info)


@pytest.mark.parametrize(("streaming", "size", "streams"), [(True, 0, True), ("auto", 600, True), ("auto", 400, False)])
def test_what_the_disk_has_no_room_for_is_streamed(
    streaming: Any, size: int, streams: bool, hub_directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with 1,000 bytes left takes 500 twice: as the files that come, and as what datasets makes of them."""
    answers(monkeypatch, size)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("raymb.data.hub.shutil.disk_usage", lambda place: usage(10_000, 9_000, 1_000))
    loaded = load("owner/name", hub_directory, {}, streaming)
    made = list((tmp_path / "cache").rglob("*.arrow"))
    assert (made == []) == streams
    split = loaded.split("train", "owner/name train")
    batches = list(split.batches())
    assert [row for batch in batches for row in batch.rows] == rows(BATCH + 5)
    assert [batch.numbers for batch in batches] == [range(1, BATCH + 1), range(BATCH + 1, BATCH + 6)]
    assert loaded.splits.keys() == {"train", "test"}
    prints = {loaded.split(name, f"owner/name {name}").fingerprint() for name in ("train", "test")}
    assert len(prints) == 2 and all("abc" in text for text in prints)


def test_a_stream_is_read_as_far_as_it_is_needed(hub_directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, 0)
    Path(hub_directory, "train_2.jsonl").write_text("{broken\n")
    loaded = load("owner/name", hub_directory, {"split": "train"}, True)
    monkeypatch.setattr("raymb.data.hub.load", lambda *args: loaded)
    assert read("owner/name#5") == {"train": rows(5)}
    with pytest.raises(DataError, match="--dataset owner/name: reading its rows failed"):
        read("owner/name")

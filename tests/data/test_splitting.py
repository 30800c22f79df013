"""Which rows are held out: those and no others, whatever else changes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_shape_only_model
from tests.data.pairs import Rows, rows, write

from raymb.data.prepare import Prepared, prepare
from raymb.data.splitting import _held_out, draws
from raymb.data.store import RowFile
from raymb.spec import load_spec

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape_only_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def parts(model: Path, tmp_path: Path, in_this_process: None) -> Callable[..., dict[str, list[str]]]:
    """The texts of each part."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)

    def run(*, keep: list[Prepared] | None = None, **flags: Any) -> dict[str, list[str]]:
        given = {"hf_model_path": str(model), "storage_path": str(tmp_path / "storage"), "seq_length": "64"}
        changed = {name: value if isinstance(value, list) else str(value) for name, value in flags.items()}
        found = prepare(load_spec({**given, **changed}), str(model), chat=False, sample_multiple=1)
        if keep is not None:
            keep.append(found)
        texts: dict[str, list[str]] = {}
        for part in found.manifest["parts"]:
            rows = RowFile(found.path / f"{part}.arrow")
            samples = chain.from_iterable(np.split(row["input_ids"], np.cumsum(row["lengths"])[:-1]) for row in rows)
            texts[part] = [tokenizer.decode(ids).removesuffix("<|endoftext|>") for ids in samples]
        return texts

    return run


SPLIT = {"validation_split": 0.1, "test_split": 0.05}


def test_split_is_the_same_every_time_and_loses_nothing(parts: Any, tmp_path: Path) -> None:
    everything = [row["prompt"] + row["completion"] for row in rows(400)]
    found = parts(dataset=write(tmp_path / "a.jsonl", rows(400)), **SPLIT)
    assert sorted(chain.from_iterable(found.values())) == sorted(everything)
    assert abs(len(found["validation"]) - 40) < 12 and abs(len(found["test"]) - 20) < 9
    for texts in found.values():
        assert texts == [text for text in everything if text in set(texts)], "in the order of the source"
    other = parts(dataset=tmp_path / "a.jsonl", **SPLIT, seed=7)
    assert set(other["validation"]) != set(found["validation"])


CHANGES: dict[str, tuple[Callable[[Rows], Rows], dict[str, Any]]] = {
    "a row dropped": (lambda content: content[:17] + content[18:], {}),
    "rows added": (lambda content: [*rows(50, start=1000), *content], {}),
    "another order": (lambda content: content[::-1], {}),
    "a wrong row": (lambda content: [{}, *content], {"bad_rows": "drop"}),
    "long rows left out": (lambda content: content, {"seq_length": 8, "long_rows": "drop"}),
    "another loss": (lambda content: content, {"loss_mode": "full"}),
    "packed": (lambda content: content, {"packing": True}),
    "no test": (lambda content: content, {"test_split": 0}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_held_out_rows_stay(change: str, parts: Any, tmp_path: Path) -> None:
    """Of the rows that are left each one is where it was."""
    edit, flags = CHANGES[change]
    content = [{**row, "completion": row["completion"] + " x" * (5 * (n % 9 == 0))} for n, row in enumerate(rows(200))]
    before = parts(dataset=write(tmp_path / "a.jsonl", content), **SPLIT)
    after = parts(**{"dataset": write(tmp_path / "b.jsonl", edit(content)), **SPLIT, **flags})
    was = {text: part for part, texts in before.items() for text in texts}
    moved = {
        text: (was[text], part)
        for part, texts in after.items()
        for text in texts
        if was.get(text, part) != part and not (flags.get("test_split") == 0 and was[text] == "test")
    }
    assert not moved
    assert len(was.keys() & set(chain.from_iterable(after.values()))) > 80


def test_another_weight_moves_no_held_out_row(parts: Any, tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", rows(200)), write(tmp_path / "two.jsonl", rows(200, start=200))
    found = [parts(dataset=[f"{one}:{a}", f"{two}:{b}"], **SPLIT) for a, b in ((0.5, 0.5), (0.9, 0.1))]
    assert [found[0][part] for part in PARTS[1:]] == [found[1][part] for part in PARTS[1:]]
    assert len(found[1]["train"]) < len(found[0]["train"])
    alone = parts(dataset=one, **SPLIT)
    assert alone["validation"] == [text for text in found[0]["validation"] if text in set(alone["validation"])]


def test_equal_rows_are_on_one_side(parts: Any, tmp_path: Path) -> None:
    found = parts(dataset=write(tmp_path / "a.jsonl", rows(100) * 2), **SPLIT)
    assert not set(found["train"]) & set(found["validation"] + found["test"])


def test_a_document_is_on_one_side(parts: Any, tmp_path: Path) -> None:
    """Its pieces are samples of one row; also where the only row that is held out is the one that must be."""
    content = [{"text": f"d{number} " * 200} for number in range(30)]
    for count, split in ((30, SPLIT), (3, {"validation_split": 0.01})):
        found = parts(dataset=write(tmp_path / f"{count}.jsonl", content[:count]), **split)
        documents = {
            part: {text.split()[1] for text in texts if len(text.split()) > 1} for part, texts in found.items()
        }
        assert documents["validation"] and not documents["train"] & documents["validation"]


def test_fewer_validation_rows_are_some_of_all(parts: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(200))
    every, ten, five = (
        parts(dataset=file, validation_split=0.2, test_split=0.1, **limit)
        for limit in ({}, {"max_validation_samples": 10}, {"max_validation_samples": 5})
    )
    assert (len(ten["validation"]), len(five["validation"])) == (10, 5)
    assert set(five["validation"]) < set(ten["validation"]) < set(every["validation"])
    assert every["train"] == ten["train"] == five["train"] and every["test"] == ten["test"]
    more = parts(dataset=file, validation_split=0.2, test_split=0.1, max_validation_samples=1000)
    assert more["validation"] == every["validation"]
    own = parts(dataset=file, validation_dataset=write(tmp_path / "v.jsonl", rows(30, 500)), max_validation_samples=7)
    assert len(own["validation"]) == 7


@pytest.mark.parametrize(("count", "expected"), [(1, {"train": 1}), (2, None), (3, None), (10, None)])
def test_few_rows(count: int, expected: dict[str, int] | None, parts: Any, tmp_path: Path) -> None:
    """Someone who asks for validation rows gets one, but never the last training row."""
    found = parts(dataset=write(tmp_path / "a.jsonl", rows(count)), validation_split=0.05)
    assert {part: len(texts) for part, texts in found.items()} == (expected or {"train": count - 1, "validation": 1})
    found = parts(dataset=tmp_path / "a.jsonl", validation_split=0.49, test_split=0.5)
    assert found["train"] and sum(map(len, found.values())) == count


def test_what_was_lost_is_counted_by_part(parts: Any, tmp_path: Path) -> None:
    long = {"prompt": "p", "completion": " c" * 40}
    train = write(tmp_path / "a.jsonl", [*rows(9), long, long, {}, {"prompt": "p" * 90, "completion": " c"}])
    held_out = write(tmp_path / "v.jsonl", [*rows(4, 50), long, {"prompt": "a", "completion": ""}])
    kept: list[Prepared] = []
    parts(keep=kept, dataset=train, validation_dataset=held_out, seq_length=16, bad_rows="drop")
    numbers = {
        part: tuple(found[name] for name in ("rows", "truncated_rows", "dropped_rows", "empty_answers"))
        for part, found in kept[0].manifest["parts"].items()
    }
    assert numbers == {"train": (11, 2, 2, 0), "validation": (5, 1, 1, 1)}


@given(seed=st.integers(0, 2**70), shares=st.tuples(st.floats(0, 0.5), st.floats(0, 0.49)))
def test_shares_are_about_those_asked_for(seed: int, shares: tuple[float, float]) -> None:
    drawn = draws(np.arange(4000, dtype=np.uint64), seed)
    assert drawn.min() >= 0 and drawn.max() < 1
    held_out = _held_out(drawn, dict(zip(PARTS[1:], shares, strict=True)))
    for share, mask in zip(shares, held_out.values(), strict=True):
        assert abs(mask.mean() - share) < 0.05
    assert not np.any(held_out["validation"] & held_out["test"])

"""Preparation: what it reads, what it keeps, what it writes, and that nothing half done is ever believed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from tests.conftest import write_shape_only_model
from tests.data.pairs import Rows, rows, write
from tests.data.templates import unmarked

from raymb.data.prepare import Prepared, prepare
from raymb.data.store import MANIFEST, RowFile
from raymb.errors import DataError, RunDirError
from raymb.spec import load_spec


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape_only_model(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def prepared(model: Path, tmp_path: Path, in_this_process: None) -> Callable[..., Prepared]:
    def run(sample_multiple: int = 1, vocab_size: int | None = None, **flags: Any) -> Prepared:
        given = {"hf_model_path": str(model), "storage_path": str(tmp_path / "storage"), "seq_length": "64"}
        changed = {name: value if isinstance(value, list) else str(value) for name, value in flags.items()}
        return prepare(
            load_spec({**given, **changed}),
            str(model),
            chat=False,
            sample_multiple=sample_multiple,
            vocab_size=vocab_size,
        )

    return run


def texts(found: Prepared, model: Path, part: str = "train") -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    decoded = []
    for row in RowFile(found.path / f"{part}.arrow"):
        begin = 0
        for length in row["lengths"]:
            decoded.append(tokenizer.decode(row["input_ids"][begin : begin + length - 1]))
            begin += length
    return decoded


def joined(content: Rows) -> list[str]:
    return [row["prompt"] + row["completion"] for row in content]


FORMATS: dict[str, Callable[[Path, Rows], Any]] = {
    "a.jsonl": write,
    "a.jsonl.gz": lambda file, content: file.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in content).encode())
    ),
    "a.json": lambda file, content: file.write_text(json.dumps(content)),
    "lines.json": write,
    "a.csv": lambda file, content: file.write_text(
        "prompt,completion\n" + "".join(f'"{row["prompt"]}",{row["completion"]}\n' for row in content)
    ),
    "a.tsv": lambda file, content: file.write_text(
        "prompt\tcompletion\n" + "".join(f"{row['prompt']}\t{row['completion']}\n" for row in content)
    ),
    "a.parquet": lambda file, content: parquet.write_table(pa.Table.from_pylist(content), file),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_same_rows(name: str, prepared: Any, model: Path, tmp_path: Path) -> None:
    content = rows(5000)
    FORMATS[name](tmp_path / name, content)
    found = prepared(dataset=tmp_path / name, validation_split=0)
    assert texts(found, model) == joined(content)


def test_odd_text_survives(prepared: Any, model: Path, tmp_path: Path) -> None:
    odd = {"prompt": "a\u2028b\r\x85", "completion": " \u00e9\U0001f600"}
    text = "\ufeff" + json.dumps(odd, ensure_ascii=False) + "\r\n\n" + json.dumps(odd)
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    assert texts(prepared(dataset=tmp_path / "a.jsonl", validation_split=0), model) == joined([odd, odd])


def test_globs_directories_and_uris(prepared: Any, model: Path, tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"part-{number}.jsonl", rows(5, start=5 * number))
    everything = joined(rows(15))
    for word in (
        str(tmp_path / "part-*.jsonl"),
        str(tmp_path),
        f"file://{tmp_path}/part-*.jsonl",
        f"file://{tmp_path}",
    ):
        assert texts(prepared(dataset=word, validation_split=0), model) == everything
    import fsspec

    with fsspec.open("memory://bucket/rows.jsonl", "w") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows(4)))
    assert texts(prepared(dataset="memory://bucket/rows.jsonl", validation_split=0), model) == joined(rows(4))


def test_parts_of_a_directory(prepared: Any, model: Path, tmp_path: Path) -> None:
    for name, count in (
        ("train-0.jsonl", 9),
        ("train-1.jsonl", 3),
        ("dev.jsonl", 2),
        ("test.jsonl", 1),
        ("notes.md", 1),
    ):
        write(tmp_path / name, rows(count))
    found = prepared(dataset=tmp_path, test_split=0.5)
    assert [found.rows(part) for part in ("train", "validation", "test")] == [12, 2, 1]
    other = write(tmp_path / "notes.jsonl", rows(4, start=100))
    found = prepared(dataset=tmp_path, validation_dataset=other, test_dataset=other)
    assert [found.rows(part) for part in ("train", "validation", "test")] == [12, 4, 4]
    assert texts(found, model, "test") == joined(rows(4, start=100))


def test_weights(prepared: Any, tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", rows(100)), write(tmp_path / "two.jsonl", rows(1000, start=100))
    found = prepared(dataset=[f"{one}:0.25", f"{two}:0.75"], validation_split=0)
    assert [source["used"] for source in found.manifest["sources"]] == [100, 300]
    assert found.rows("train") == 400
    assert prepared(dataset=[str(one), str(two)], validation_split=0).rows("train") == 1100


def test_rows_that_are_used_again_are_not_held_out(prepared: Any, model: Path, tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.jsonl", rows(40)), write(tmp_path / "two.jsonl", rows(20, start=100))
    found = prepared(dataset=[f"{one}:2.5", str(two)], validation_split=0.1)
    train, held_out = texts(found, model), texts(found, model, "validation")
    assert len(held_out) == 3 + 4 and not set(train) & set(held_out)
    times = {text: train.count(text) for text in train}
    assert sorted(times[text] for text in joined(rows(40)) if text in times) == [2] * 19 + [3] * 18
    assert [times[text] for text in joined(rows(20, start=100)) if text in times] == [1] * 16
    assert found.manifest["parts"]["train"]["duplicate_rows"] == 0


def test_the_data_seed_is_the_seed_unless_it_is_given(prepared: Any, model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(100))
    first = prepared(dataset=file)
    assert {prepared(dataset=file, data_seed=1234, seed=seed).path for seed in (1234, 5)} == {first.path}
    other = prepared(dataset=file, data_seed=5)
    assert other.path == prepared(dataset=file, seed=5).path
    assert texts(other, model, "validation") != texts(first, model, "validation")


def test_long_documents_fill_rows(prepared: Any, model: Path, tmp_path: Path) -> None:
    """Pieces of --seq_length are full rows, and the ends that are left share rows."""
    file = write(tmp_path / "a.jsonl", [{"text": "abc " * count} for count in (10, 30, 100)])
    found = prepared(dataset=file, seq_length=64, packing=True, validation_split=0)
    numbers = found.manifest["parts"]["train"]
    assert numbers["trained_tokens"] == numbers["tokens"] > 300 and found.manifest["pairs"] == 3
    assert numbers["packed_rows"] == -(-numbers["tokens"] // 64) and numbers["truncated_rows"] == 0


def test_reused_only_while_everything_is_the_same(prepared: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(50))
    first = prepared(dataset=file)
    again = prepared(dataset=file)
    assert (first.reused, again.reused, first.path) == (False, True, again.path)
    moved = prepared(dataset=write(tmp_path / "moved.jsonl", rows(50)))
    assert moved.reused and moved.path == first.path
    changes: list[dict[str, Any]] = [
        {"seed": 2},
        {"data_seed": 3},
        {"max_samples": 40},
        {"apply_chat_template": False},
        {"seq_length": 32},
        {"packing": True},
        {"packing": True, "sample_multiple": 4},
        {"loss_mode": "full"},
        {"validation_split": 0.2},
        {"test_split": 0.2},
        {"long_rows": "drop"},
        {"bad_rows": "drop"},
        {"prompt_column": "completion", "completion_column": "prompt"},
        {"dataset": write(tmp_path / "b.jsonl", rows(51))},
    ]
    paths = {prepared(**{"dataset": file, **change}).path for change in changes}
    assert len(paths) == len(changes) and first.path not in paths


def test_another_tokenizer_is_another_preparation(prepared: Any, model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(10))
    first = prepared(dataset=file)
    config = model / "tokenizer_config.json"
    before = config.read_text()
    try:
        config.write_text(json.dumps(json.loads(before) | {"chat_template": "{{ messages }}"}))
        assert prepared(dataset=file).path != first.path
    finally:
        config.write_text(before)


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_another_version_of_what_tokenizes_is_another_preparation(
    package: str, prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", rows(10))
    first = prepared(dataset=file)
    monkeypatch.setattr("raymb.data.prepare.version", lambda name: "0.1" if name == package else version(name))
    assert prepared(dataset=file).path != first.path


@pytest.mark.parametrize("packing", [False, True])
def test_a_token_beyond_the_embedding_is_refused(packing: bool, model: Path, tmp_path: Path, prepared: Any) -> None:
    """With the row that has it, also when the rows were prepared before for a model with a larger embedding."""
    content = rows(10)
    content[6]["completion"] = " zebra"
    file = write(tmp_path / "a.jsonl", content)
    flags = {"dataset": file, "packing": packing, "validation_split": 0}
    found = prepared(**flags)
    largest = found.manifest["largest_token"]
    ids = np.concatenate([row["input_ids"] for row in RowFile(found.path / "train.arrow")])
    assert largest["id"] == ids.max() and largest["row"].startswith(f"{file} line ")
    assert prepared(**flags, vocab_size=largest["id"] + 1).reused
    for again in ({}, {"seq_length": 32}):
        with pytest.raises(DataError) as caught:
            prepared(**flags, **again, vocab_size=largest["id"])
        for words in (largest["row"], f"token {largest['id']} ({largest['token']!r})", f"{largest['id']} rows"):
            assert words in str(caught.value)
    assert not list((tmp_path / "storage" / "_prepared").glob(".*")), "nothing is left behind"


@pytest.mark.parametrize("damage", ["cut", "removed", "no manifest", "manifest cut"])
def test_damaged_rows_are_made_again(damage: str, prepared: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(50))
    first = prepared(dataset=file)
    target = first.path / ("train.arrow" if damage in ("cut", "removed") else MANIFEST)
    whole = (first.path / "train.arrow").read_bytes()
    if "cut" in damage:
        target.write_bytes(target.read_bytes()[:-5])
    else:
        target.unlink()
    again = prepared(dataset=file)
    assert not again.reused and again.path == first.path
    assert (first.path / "train.arrow").read_bytes() == whole


def test_a_killed_preparation_leaves_nothing_that_is_believed(model: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle, with its processes of its own; the next run starts anew and sweeps up."""
    file = write(tmp_path / "a.jsonl", rows(60_000))
    words = ["--hf_model_path", model, "--dataset", file, "--storage_path", tmp_path / "storage", "--seq_length", 64]
    command = [sys.executable, "-m", "raymb", "data", "prepare", "--json", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": "src"}
    killed = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    home = tmp_path / "storage" / "_prepared"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(part.stat().st_size for part in home.glob(".*/tokens.tmp")):
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    left = list(home.iterdir())
    assert len(left) == 1 and left[0].name.startswith(".") and not (left[0] / MANIFEST).exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    numbers = json.loads(done.stdout)
    assert (numbers["rows"], numbers["dropped_rows"]) == (57_044, 0)
    assert [place.name for place in home.iterdir()] == [Path(numbers["path"]).name]


def test_two_at_once_do_not_collide(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(3000))
    words = ["--hf_model_path", model, "--dataset", file, "--storage_path", tmp_path / "storage", "--seq_length", 64]
    command = [sys.executable, "-m", "raymb", "data", "prepare", "--json", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": "src"}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert outputs[0] == outputs[1] and outputs[0]["rows"] == 2840
    assert len(list((tmp_path / "storage" / "_prepared").iterdir())) == 1


@pytest.mark.parametrize("sample_multiple", [1, 4, 16])
def test_packing(sample_multiple: int, prepared: Any, model: Path, tmp_path: Path) -> None:
    """Every sample is there once and whole, no row is too long, and the numbers say so."""
    content = [{"prompt": "p" * (1 + number % 50), "completion": f" c{number}"} for number in range(500)]
    file = write(tmp_path / "a.jsonl", content)
    found = prepared(sample_multiple, dataset=file, packing=True, validation_split=0, seq_length=128)
    packed = list(RowFile(found.path / "train.arrow"))
    for row in packed:
        inputs = row["lengths"] - 1
        assert (-(-inputs // sample_multiple) * sample_multiple).sum() <= 128
    assert sorted(texts(found, model)) == sorted(joined(content))
    numbers = found.manifest["parts"]["train"]
    assert numbers["packed_rows"] == len(packed) == found.rows("train") < 250
    tokens = sum(int((row["lengths"] - 1).sum()) for row in packed)
    assert numbers["tokens"] == tokens and numbers["packing_efficiency"] == tokens / (len(packed) * 128)
    begins = [np.cumsum(row["lengths"]) - row["lengths"] for row in packed]
    targets = sum(
        int(row["trained"].sum() - row["trained"][first].sum()) for row, first in zip(packed, begins, strict=True)
    )
    assert numbers["trained_tokens"] == targets


def test_long_rows(prepared: Any, model: Path, tmp_path: Path) -> None:
    content = [*rows(5), {"prompt": "p", "completion": " c" * 40}, {"prompt": "p" * 50, "completion": " c"}]
    file = write(tmp_path / "a.jsonl", content)
    flags = {"dataset": file, "validation_split": 0, "seq_length": 16}
    cut = prepared(**flags)
    numbers = cut.manifest["parts"]["train"]
    assert (numbers["rows"], numbers["truncated_rows"], numbers["dropped_rows"], numbers["longest"]) == (6, 1, 1, 17)
    assert numbers["truncated_tokens"] > 20 and numbers["empty_answers"] == 0
    assert cut.manifest["notes"] == [
        f"1 row is cut to --seq_length 16 (the first: {file} line 6)",
        f"1 row is left out: cut to --seq_length 16, no trained token is left (the first: {file} line 7)",
    ]
    assert all(f"warning: {note}" in cut.summary() for note in cut.manifest["notes"])
    dropped = prepared(**flags, long_rows="drop")
    assert texts(dropped, model) == joined(rows(5))
    assert "2 rows are longer than --seq_length 16 and left out (--long_rows drop)" in dropped.manifest["notes"][0]


def test_a_template_from_a_shell(prepared: Any, model: Path, tmp_path: Path) -> None:
    r"""A shell hands on \n as two characters; \\n stays a backslash and an n."""
    file = write(tmp_path / "a.jsonl", [{"q": "1+1?", "a": "2"}])
    flags = {"prompt_template": r"Q: {q}\nA:\t", "completion_template": r"{a}\\n", "validation_split": 0}
    assert texts(prepared(dataset=file, **flags), model) == ["Q: 1+1?\nA:\t2\\n"]


def test_a_full_disk_is_named(prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raymb.data.prepare.write_rows", full)
    with pytest.raises(RunDirError, match=r"rows cannot be written there .No space left on device"):
        prepared(dataset=write(tmp_path / "a.jsonl", rows(5)))
    assert not (tmp_path / "storage").exists()


def test_validation_rows_alone_are_not_enough(prepared: Any, tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", [{}]), write(tmp_path / "v.jsonl", rows(3))
    with pytest.raises(DataError, match="no rows to train on"):
        prepared(dataset=train, validation_dataset=held_out, bad_rows="drop")


def test_bad_rows_can_be_dropped(prepared: Any, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n{\n" for row in rows(4)) + '{"prompt": "", "completion": " "}')
    found = prepared(dataset=file, bad_rows="drop", validation_split=0)
    assert texts(found, model) == joined(rows(4))
    assert found.manifest["parts"]["train"]["empty_answers"] == 1
    assert found.manifest["notes"][0].startswith("5 rows are wrong and left out (--bad_rows drop); the first: ")


def test_flags_about_conversations_beside_plain_texts(prepared: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(4))
    assert prepared(dataset=file, validation_split=0).manifest["notes"] == []
    found = prepared(dataset=file, validation_split=0, system_prompt="Be brief.", train_on_roles="assistant,tool")
    assert found.manifest["notes"] == [
        "4 rows are plain texts, for which --system_prompt and --train_on_roles do nothing"
    ]


def test_leaks_and_duplicates_are_named(prepared: Any, tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", [*rows(8), *rows(2)]), write(tmp_path / "v.jsonl", rows(3, start=7))
    found = prepared(dataset=train, validation_dataset=held_out)
    assert found.manifest["parts"]["train"]["duplicate_rows"] == 2
    assert found.manifest["notes"] == [f"1 row is both in validation and in training (the first: {held_out} line 1)"]


def test_real_dialogues_packed(
    smollm2: Path, dialogues: list[list[str]], tmp_path: Path, in_this_process: None
) -> None:
    """Short real dialogues at sequence length 1024: how much fuller a step is."""
    roles = ("user", "assistant")
    content = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]}
        for turns in dialogues
        if turns[1].strip()
    ]
    file = write(tmp_path / "dialogues.jsonl", content)
    flags = {"hf_model_path": str(smollm2), "dataset": str(file), "storage_path": str(tmp_path), "seq_length": "1024"}
    numbers = {}
    for packing in ("false", "true"):
        spec = load_spec({**flags, "packing": packing, "validation_split": "0"})
        numbers[packing] = prepare(spec, str(smollm2), chat=True, sample_multiple=1).manifest["parts"]["train"]
    a_row = {packing: part["trained_tokens"] / part["packed_rows"] for packing, part in numbers.items()}
    ratio = a_row["true"] / a_row["false"]
    efficiency = numbers["true"]["packing_efficiency"]
    print(
        f"\nsequence 1024, {len(content):,} dialogues: {efficiency:.2%} full, {numbers['true']['packed_rows']} rows, "
        f"{ratio:.1f} times the trained tokens of a padded step"
    )
    assert numbers["true"]["trained_tokens"] == numbers["false"]["trained_tokens"]
    fewest = -(-numbers["true"]["tokens"] // 1024)
    assert numbers["true"]["packed_rows"] == fewest, "a row more than the tokens need"
    assert ratio >= 5


def test_tools_from_parquet_lose_no_keys(
    model: Path, tmp_path: Path, tmp_path_factory: Any, in_this_process: None
) -> None:
    """A columnar file gives every object the keys of all: the nulls are no part of the row."""
    calls = [{"function": {"name": "f", "arguments": {key: "1"}}} for key in ("a", "b")]
    content = [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
        for call in calls
    ]
    parquet.write_table(pa.Table.from_pylist(content), tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", content)
    template = tmp_path / "t.jinja"
    template.write_text(unmarked("Qwen"))
    found = []
    for name in ("a.parquet", "a.jsonl"):
        flags = {"hf_model_path": str(model), "dataset": str(tmp_path / name), "chat_template": str(template)}
        spec = load_spec({**flags, "storage_path": str(tmp_path), "validation_split": "0", "seq_length": "256"})
        found.append(texts(prepare(spec, str(model), chat=True, sample_multiple=1), model))
    assert found[0] == found[1]
    assert '"arguments": {"a": "1"}' in found[0][0].replace("\\", "")

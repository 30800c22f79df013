"""Where rows come from, and how they are split."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raymb.data import Rows, load_rows
from raymb.data.rows import Row, split
from raymb.errors import DataError
from raymb.spec import RunSpec, load_spec


def spec(**flags: Any) -> RunSpec:
    return load_spec({"hf_model_path": "models/tiny", **flags})


def rows(count: int, start: int = 0) -> list[Row]:
    return [{"prompt": f"p{number}", "completion": f" c{number}"} for number in range(start, start + count)]


def write(file: Path, content: list[Row]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in content))
    return file


def chat_rows(count: int) -> list[Row]:
    return [{"messages": [{"role": "assistant", "content": str(number)}]} for number in range(count)]


def test_file_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(100))
    first = load_rows(spec(dataset=str(file)), chat=False)
    assert (len(first.train), len(first.validation)) == (95, 5)
    assert sorted(row["prompt"] for row in first.train + first.validation) == sorted(row["prompt"] for row in rows(100))
    again = load_rows(spec(dataset=str(file)), chat=True)
    assert again == first
    assert again.content_hash == first.content_hash
    assert load_rows(spec(dataset=str(file), seed=7), chat=False).validation != first.validation
    assert first.summary() == f"95 prompt/completion rows to train on, 5 for validation, from {file}"


@pytest.mark.parametrize(
    ("count", "share", "held_out"), [(10, 0.0, 0), (1, 0.5, 0), (2, 0.01, 1), (2, 0.99, 1), (20, 0.1, 2)]
)
def test_split_sizes(count: int, share: float, held_out: int) -> None:
    train, validation = split(rows(count), share, seed=1)
    assert (len(train), len(validation)) == (count - held_out, held_out)


def test_directory_with_two_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(9))
    write(tmp_path / "validation.jsonl", rows(3, start=9))
    loaded = load_rows(spec(dataset=str(tmp_path)), chat=False)
    assert loaded == Rows("prompt_completion", tuple(rows(9)), tuple(rows(3, start=9)), str(tmp_path))


def test_directory_without_validation_is_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(10))
    loaded = load_rows(spec(dataset=str(tmp_path), validation_split=0.2), chat=False)
    assert (len(loaded.train), len(loaded.validation)) == (8, 2)


def test_directory_of_two_kinds(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", rows(2))
    write(tmp_path / "validation.jsonl", chat_rows(2))
    with pytest.raises(DataError, match="use one kind in both files"):
        load_rows(spec(dataset=str(tmp_path)), chat=True)


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", chat_rows(4))
    assert load_rows(spec(dataset=str(file)), chat=True).kind == "messages"
    with pytest.raises(DataError, match=r"models/tiny has no chat template(?s:.*)--hf_model_path"):
        load_rows(spec(dataset=str(file)), chat=False)


@pytest.mark.parametrize(
    ("name", "said"),
    [("absent.jsonl", "no such file or directory"), ("rows.csv", "a .jsonl file or a directory"), (".", "no train")],
)
def test_wrong_path(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(DataError, match=said) as caught:
        load_rows(spec(dataset=str(tmp_path / name)), chat=False)
    assert "--dataset" in caught.value.message
    assert "--dataset sample" in caught.value.hint


def test_sample_dialogues() -> None:
    pytest.importorskip("chatterbot_corpus")
    chat = load_rows(spec(dataset="sample"), chat=True)
    plain = load_rows(spec(dataset="sample"), chat=False)
    assert (chat.kind, plain.kind) == ("messages", "prompt_completion")
    assert len(chat.train) == len(plain.train) > 700
    assert len(chat.validation) > 30
    question, answer = chat.validation[0]["messages"]
    assert (question["role"], answer["role"]) == ("user", "assistant")
    assert plain.validation[0] == {
        "prompt": f"Question: {question['content']}\nAnswer:",
        "completion": f" {answer['content']}",
    }
    trained = {row["prompt"].casefold() for row in plain.train}
    assert not trained & {row["prompt"].casefold() for row in plain.validation}


def test_sample_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"(?s:.*)pip install chatterbot-corpus"):
        load_rows(spec(dataset="sample"), chat=True)


def test_squad_rows_read_like_the_public_example(monkeypatch: pytest.MonkeyPatch) -> None:
    example = {"context": "C.", "question": "Q?", "answers": {"text": ["A", "B"]}}
    monkeypatch.setattr("raymb.data.sources._load_squad", lambda: {"train": [example], "validation": [example]})
    loaded = load_rows(spec(), chat=True)
    assert loaded.train == loaded.validation == ({"prompt": "Context: C. Question: Q? Answer:", "completion": " A"},)


def test_hub_out_of_reach_fails_within_seconds(tmp_path: Path) -> None:
    """A subprocess, because the hub's address is read when its client is imported. Port 1 refuses at once."""
    code = (
        "from raymb.data import load_rows; from raymb.spec import load_spec\n"
        "load_rows(load_spec({'hf_model_path': 'm'}), chat=False)"
    )
    env = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - start < 30
    last_lines = done.stderr.strip().splitlines()[-2:]
    assert "DataError: without --dataset, SQuAD is read from the hub, which failed (ConnectError" in last_lines[0]
    assert "--dataset FILE.jsonl" in last_lines[1]
    assert "--dataset sample" in last_lines[1]

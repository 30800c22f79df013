"""What `raymb data inspect` and `raymb data prepare --json` show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymb.cli import main

KEYS = {
    "rows",
    "packed_rows",
    "packing_efficiency",
    "tokens",
    "trained_tokens",
    "truncated_rows",
    "dropped_rows",
    "path",
}


@pytest.fixture
def words(shape_only_model_dir: Path, tmp_path: Path, in_this_process: None) -> list[str]:
    rows = [{"prompt": f"Q[{number}]?", "completion": " yes" * (1 + number % 9)} for number in range(100)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3]]))
    given = ["--hf_model_path", shape_only_model_dir, "--dataset", tmp_path / "rows.jsonl", "--storage_path", tmp_path]
    return [*map(str, given), "--seq_length", "64"]


def test_inspection(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "lengths.png"
    assert main(["data", "inspect", *words, "--samples", "2", "--plot", str(plot)]) == 0
    text = capsys.readouterr().out
    assert "row 1, 10 tokens" in text and "Q[0]?[[ yes<|endoftext|>]]" in text
    assert "row 2, " in text and "row 3, " not in text
    for line in (
        "samples          96, 10 to 43 tokens long",
        "rows of a batch  96 of 64 tokens",
        "duplicates       1 ",
    ):
        assert line in text, text
    assert "tokens in a sample" in text and "####" in text
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_ids_parts_and_packed_rows(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", *words, "--packing", "--part", "validation", "--samples", "1", "--ids"]) == 0
    text = capsys.readouterr().out
    assert "row 1, sample 1 of " in text and ", 0] ]]" in text  # the id of the end
    assert ", packed" in text


@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_json(command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", command, *words, "--json", "--packing"]) == 0
    numbers: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert numbers.keys() >= KEYS
    assert (numbers["rows"], numbers["truncated_rows"], numbers["dropped_rows"]) == (96, 0, 0)
    assert numbers["packing_efficiency"] == numbers["tokens"] / (64 * numbers["packed_rows"]) > 0.9
    assert Path(numbers["path"], "manifest.json").is_file()


def test_second_preparation_says_that_it_is_reused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", *words]) == 0
    assert "prepared in" in capsys.readouterr().out
    assert main(["data", "prepare", *words]) == 0
    assert "reused from" in capsys.readouterr().out

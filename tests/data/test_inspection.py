"""What `raymb data inspect` and `raymb data prepare --json` show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_shape_only_model

from raymb.cli import main
from raymb.data.explaining import Shown, Stretch, turns
from raymb.data.settings import Settings
from raymb.data.shapes import Shape

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
    assert "row 1, 10 tokens, " in text and "Q[0]?[[ yes<|endoftext|>]]" in text
    assert "  prompt: not trained (not the completion)\n  completion: trained, 5 tokens\n" in text
    assert "row 2, " in text and "row 3, " not in text
    for line in (
        "samples          95, 10 to 43 tokens long",
        "rows of a batch  95 of 64 tokens",
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
    assert (numbers["rows"], numbers["truncated_rows"], numbers["dropped_rows"]) == (95, 0, 0)
    assert numbers["packing_efficiency"] == numbers["tokens"] / (64 * numbers["packed_rows"]) > 0.9
    assert Path(numbers["path"], "manifest.json").is_file()


def test_second_preparation_says_that_it_is_reused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", *words]) == 0
    assert "prepared in" in capsys.readouterr().out
    assert main(["data", "prepare", *words]) == 0
    assert "reused from" in capsys.readouterr().out


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
]


def explained_as(row: dict[str, Any], lengths: list[int], **changes: Any) -> list[str]:
    given = {"chat_template": None, "shape": Shape(), "loss_mode": "assistant", "max_tokens": 99, "long_rows": "drop"}
    stretches = [one for length in lengths for one in (Stretch([5] * 3, False), Stretch([7] * length, True))]
    return turns(Shown(stretches, row), Settings("model", False, **(given | changes)), chat=True)


@pytest.mark.parametrize(
    ("row", "lengths", "changes", "said"),
    [
        (
            {"messages": TURNS},
            [4, 2],
            {},
            [
                "0 system: not trained (its role)",
                "1 user: not trained (its role)",
                "2 assistant: trained, 4 tokens",
                "3 user: not trained (its role)",
                "4 assistant: trained, 2 tokens",
            ],
        ),
        (
            {"messages": TURNS[1:]},
            [2],
            {"loss_mode": "last_turn"},
            [
                "0 user: not trained (its role)",
                "1 assistant: not trained (--loss_mode last_turn)",
                "2 user: not trained (its role)",
                "3 assistant: trained, 2 tokens",
            ],
        ),
        (
            {"prompt": TURNS[1:4], "completion": TURNS[4:]},
            [2],
            {},
            [
                "0 user: not trained (its role)",
                "1 assistant: not trained (weight 0)",
                "2 user: not trained (its role)",
                "3 assistant: trained, 2 tokens",
            ],
        ),
        (
            {"messages": TURNS[1:3]},
            [4],
            {"max_tokens": 7},  # it may have been cut: nobody knows how long the turn was
            ["0 user: not trained (its role)", "1 assistant: trained"],
        ),
        ({"prompt": "a", "completion": "b"}, [9], {"loss_mode": "full"}, ["prompt: trained", "completion: trained"]),
        (
            {"instruction": "a", "output": "b"},
            [3],
            {},
            ["0 user: not trained (its role)", "1 assistant: trained, 3 tokens"],
        ),
        ({"text": "abc"}, [3], {}, ["document: trained, 3 tokens"]),
        ({"other": "row by now"}, [3], {}, []),
    ],
)
def test_why_a_turn_is_trained(row: Any, lengths: list[int], changes: Any, said: list[str]) -> None:
    assert explained_as(row, lengths, **changes) == said


def test_a_large_model_is_inspected_where_it_does_not_fit(tmp_path: Path) -> None:
    """Llama 3.1 405B's shape, packed, on small GPUs: no layout fits, and no torch is loaded."""
    config = json.loads((Path(__file__).parents[1] / "shapes" / "meta-llama--Llama-3.1-405B.json").read_text())
    model = write_shape_only_model(tmp_path / "model", config)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    words = ["--hf_model_path", model, "--dataset", tmp_path / "rows.jsonl", "--storage_path", tmp_path, "--packing"]
    words += ["--backend", "cuda", "--gpu", "l4", "--num_workers", "3", "--cp", "2"]
    code = f"""
import sys
from raymb.cli import main
words = {[*map(str, words)]!r}
print(main(["plan", *words]), file=sys.stderr)
code = main(["data", "inspect", *words])
print([name for name in ("torch", "ray", "transformers", "megatron") if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""
    environment = os.environ | {"PYTHONPATH": "src"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]" and "this layout cannot train" in done.stderr
    assert "rows of a batch  1 of 512 tokens, packed" in done.stdout
    (manifest,) = (tmp_path / "_prepared").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["multiple"] == 4


def test_two_samples_have_no_empty_bins(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "Q", "completion": " yes" * count} for count in (1, 12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "inspect", *words, "--validation_split", "0", "--samples", "0"]) == 0
    text = capsys.readouterr().out.partition("tokens in a sample\n")[2]
    assert [line.split()[-1] for line in text.splitlines() if " to " in line] == ["1", "1"]

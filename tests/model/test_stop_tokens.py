"""Where an exported model stops: what its own settings say, and the ends of the answers that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raymb.model.stop_tokens import GENERATION_CONFIG, add_stop_tokens, stop_tokens

EOS, END_OF_TURN = 151643, 151645


def _directory(place: Path, **files: dict[str, Any]) -> Path:
    place.mkdir()
    for name, content in files.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return place


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"generation_config": {"eos_token_id": EOS, "max_new_tokens": 9}}, [EOS, END_OF_TURN]),
        ({"generation_config": {"eos_token_id": [END_OF_TURN, EOS]}}, [END_OF_TURN, EOS]),
        ({"config": {"eos_token_id": EOS}}, [EOS, END_OF_TURN]),
        ({"generation_config": {"max_new_tokens": 9}, "config": {"eos_token_id": EOS}}, [EOS, END_OF_TURN]),
        ({}, [END_OF_TURN]),
    ],
    ids=["a base model", "an instruct model", "config.json alone", "settings without it", "nothing"],
)
def test_a_tuned_model_stops_at_the_end_of_a_turn(
    tmp_path: Path, settings: dict[str, Any], expected: list[int]
) -> None:
    base, exported = _directory(tmp_path / "base", **settings), _directory(tmp_path / "hf", **settings)
    add_stop_tokens(exported, base, [END_OF_TURN])
    assert stop_tokens(exported) == expected
    if expected != stop_tokens(base):
        written = json.loads((exported / GENERATION_CONFIG).read_text())
        assert written == settings.get("generation_config", {}) | {"eos_token_id": expected}


def test_an_adapter_says_so_beside_its_weights(tmp_path: Path) -> None:
    base = _directory(tmp_path / "base", generation_config={"eos_token_id": EOS, "temperature": 0.7})
    adapter = _directory(tmp_path / "adapter", adapter_config={"r": 8})
    add_stop_tokens(adapter, base, [EOS])
    assert not (adapter / GENERATION_CONFIG).exists(), "what the base model knows already"
    add_stop_tokens(adapter, base, [EOS, END_OF_TURN])
    assert json.loads((adapter / GENERATION_CONFIG).read_text()) == {
        "eos_token_id": [EOS, END_OF_TURN],
        "temperature": 0.7,
    }

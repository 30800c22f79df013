"""Real dialogues and real tokenizers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.data.templates import TEMPLATES, unmarked

from raymb.data.encode import Encoder
from raymb.data.settings import Settings
from raymb.data.shapes import Shape
from raymb.data.sources import Batch

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model's directory."""
    from raymb.model.sample import smollm2_directory

    return smollm2_directory()


@pytest.fixture(scope="session")
def tokenizers(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SmolLM2's real vocabulary with each family's template (and special tokens)."""
    from transformers import AutoTokenizer

    places = {}
    for name in TEMPLATES:
        tokenizer = AutoTokenizer.from_pretrained(smollm2)
        tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
        if name != "SmolLM2":  # SmolLM2's own is the published one
            tokenizer.chat_template = unmarked(name)
        places[name] = tmp_path_factory.mktemp("tokenizer")
        tokenizer.save_pretrained(places[name])
    return places


@pytest.fixture(scope="session")
def dialogues() -> list[list[str]]:
    """Conversations of two and more turns from the chatterbot-corpus package."""
    folder = Path(importlib.util.find_spec("chatterbot_corpus").origin).parent / "data" / "english"  # type: ignore[union-attr,arg-type]
    found = []
    for file in sorted(folder.glob("*.yml")):
        for turns in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            if isinstance(turns, list) and len(turns) > 1:
                found.append([str(turn) for turn in turns])
    return found


@pytest.fixture(scope="session")
def encode() -> Callable[..., list[tuple[list[int], list[int]]]]:
    """(ids, trained) of each row; a row that is refused fails the test."""
    encoders: dict[Settings, Encoder] = {}

    def run(model: Path, rows: list[dict[str, Any]], **changes: Any) -> list[tuple[list[int], list[int]]]:
        given: dict[str, Any] = {"chat_template": None, "shape": Shape(), "loss_mode": "assistant"}
        given |= {"max_tokens": 100_000, "long_rows": "fail"} | changes
        settings = Settings(str(model), False, **given)
        encoder = encoders.setdefault(settings, Encoder(settings)) if settings not in encoders else encoders[settings]
        encoded = encoder.encode(Batch("test row", range(1, len(rows) + 1), rows, 0))
        assert encoded.problems == [] and encoded.too_long == []
        assert encoded.numbers.tolist() == list(range(1, len(rows) + 1))
        ends = encoded.lengths.cumsum()
        return [
            (encoded.tokens[end - length : end].tolist(), encoded.trained[end - length : end].tolist())
            for end, length in zip(ends, encoded.lengths, strict=True)
        ]

    return run


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode without a pool: a process takes seconds to start."""

    class Encoders:
        def __init__(self, settings: Settings, console: Any):
            self.settings = settings

        def __enter__(self) -> Encoders:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def over(self, source: Any) -> Any:
            encoder = None
            for batch in source.batches():
                encoder = encoder or Encoder(self.settings)
                yield encoder.encode(batch)

    monkeypatch.setattr("raymb.data.prepare.Encoders", Encoders)

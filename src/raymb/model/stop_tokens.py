"""Where a tuned model is to stop: the marks that its training rows end answers with, in generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GENERATION_CONFIG = "generation_config.json"


def stop_tokens(directory: Path) -> list[int]:
    """Ids that end a generation, as generation_config.json says, else config.json; none where neither says."""
    for name in (GENERATION_CONFIG, "config.json"):
        ids = _object(directory / name).get("eos_token_id")
        if ids is not None:
            return ids if isinstance(ids, list) else [ids]
    return []


def answer_ends(directories: Iterable[Path], tokenizer: Any) -> list[int]:
    """Ids that end an answer, whichever engine generates it: those that the settings of the model and of its adapter
    say, and the tokenizer's EOS."""
    said = [token for directory in directories for token in stop_tokens(directory)]
    return [token for token in dict.fromkeys([*said, tokenizer.eos_token_id]) if token is not None]


def add_stop_tokens(directory: Path, base: Path, trained: Iterable[int]) -> None:
    """Have a model stop at the trained ends of answers, too: a base model tuned on conversations ends its answers with
    the chat template's mark, which its own settings do not know. The tokenizer's EOS stays as it is.

    Args:
        directory: the exported model or adapter; its generation_config.json is changed, or made.
        base: files of the model that was tuned.
        trained: ids that end answers in the training rows.
    """
    known = stop_tokens(directory) or stop_tokens(base)
    missing = [token for token in trained if token not in known]
    if missing:
        settings = _object(directory / GENERATION_CONFIG) or _object(base / GENERATION_CONFIG)
        settings["eos_token_id"] = [*known, *missing]
        (directory / GENERATION_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _object(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

"""Data sets that can be named in a word, as Megatron-Bridge 0.6.2 names and reads them (data/sources/hf.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A hub data set.

    Args:
        hub_id: owner/name.
        settings: config, split, revision.
        row: from a row of the hub to a row that raymb reads; None where it needs no change.
    """

    hub_id: str
    settings: Mapping[str, str] = field(default_factory=dict)
    row: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def _squad(row: Mapping[str, Any]) -> dict[str, Any]:
    prompt = f"Context: {row['context']} Question: {row['question']} Answer:"
    return {"prompt": prompt, "completion": f" {row['answers']['text'][0]}"}


def _gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": f"Question: {row['question']} Answer:", "completion": f" {row['answer']}"}


def _openmathinstruct2(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": f"Problem: {row['problem']} Solution:", "completion": f" {row['generated_solution']}"}


PRESETS = {
    "squad": Preset("rajpurkar/squad", row=_squad),
    "gsm8k": Preset("openai/gsm8k", {"config": "main"}, _gsm8k),
    "openmathinstruct2": Preset("nvidia/OpenMathInstruct-2", {"split": "train_1M"}, _openmathinstruct2),
    "tulu3": Preset("allenai/tulu-3-sft-mixture"),
}

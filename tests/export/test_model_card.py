"""The model card of an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from raymb.export.model_card import write_card
from raymb.spec import load_spec, spec_to_json

EXPORT = {"step": 20, "error": 1.5e-7, "tolerance": 1e-4}


def _run(home: Path, records: list[dict[str, Any]], **flags: str) -> Path:
    run = home / "my-run"
    run.mkdir()
    (run / "spec.json").write_text(spec_to_json(load_spec({"hf_model_path": "Qwen/Qwen2.5-0.5B", **flags})))
    (run / "plan.json").write_text(json.dumps({"num_workers": 8, "tensor_parallel_size": 2, "adapters": None}))
    part = {"rows": 90, "tokens": 5000, "trained_tokens": 1200}
    (run / "data.json").write_text(
        json.dumps({"sources": [{"dataset": "/data/mine.jsonl", "used": 90}], "parts": {"train": part}})
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return run


def test_what_it_says(tmp_path: Path) -> None:
    records = [{"kind": "train", "step": step, "time": 1.7e9, "loss": 3.0 / step} for step in (10, 20, 30)]
    records += [{"kind": "validation", "step": step, "time": 1.7e9, "loss": 2.0 / step} for step in (10, 20, 30)]
    run = _run(tmp_path, records, dataset="rajpurkar/squad?config=x", learning_rate="2e-5")
    out = tmp_path / "hf"
    out.mkdir()
    write_card(out, run, EXPORT, adapter=False)
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B" and card.data.library_name == "transformers"
    for words in (
        "# my-run",
        "| step | 20 |",
        "| training loss | 0.1500 (step 10: 0.3000) |",  # those after the exported step are not its own
        "| validation loss | 0.1000 (step 10: 0.2000) |",
        "within 1.5e-07 (1e-04 allowed)",
        "![loss over steps](loss.png)",
        "| source | mine.jsonl: 90 samples |",
        "| train | 90 samples, 5,000 tokens, 1,200 of them trained |",
        "| learning_rate | 2e-05 |",
        "| megatron-bridge | 0.6.2 |",
        "AutoModelForCausalLM.from_pretrained",
    ):
        assert words in card.text
    assert "/data" not in card.text, "paths of a machine are nobody's business"
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("records", [[], None], ids=["no metrics yet", "metrics elsewhere"])
def test_of_an_adapter_without_metrics(records: list[Any] | None, tmp_path: Path) -> None:
    run = _run(tmp_path, records or [], hf_model_path="sample", peft="lora")
    if records is None:
        (run / "metrics.jsonl").unlink()
    out = tmp_path / "adapter"
    out.mkdir()
    write_card(out, run, {"step": 5, "error": None}, adapter=True)
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "AutoPeftModelForCausalLM" in card.text and "loss.png" not in card.text
    assert not (out / "loss.png").exists()


def test_of_a_commit(tmp_path: Path) -> None:
    run = _run(tmp_path, [], hf_revision="c0ffee", peft="lora")
    write_card(tmp_path, run, {"step": 5, "error": None}, adapter=True)
    assert "An adapter for Qwen/Qwen2.5-0.5B at commit c0ffee, trained with" in (tmp_path / "README.md").read_text()

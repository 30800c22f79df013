"""Models that are made before a training: random weights, added tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import write_shape_only_model

from raymb.errors import ModelError
from raymb.model.files import has_weights
from raymb.model.initial import fetch_model, make_weights, model_path, share_model
from raymb.model.shape import read_model_shape
from raymb.spec import RunSpec, load_spec


def spec_of(model: Path, storage: Path, **flags: Any) -> RunSpec:
    return load_spec({"hf_model_path": str(model), "storage_path": str(storage), "num_workers": "1", **flags})


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.txt"
    file.write_text("<|im_start|>\n<|im_end|>\n\n<tool>\n")
    return file


def test_a_model_as_it_is_is_left_alone(tiny_qwen2: Path, tmp_path: Path) -> None:
    spec = spec_of(tiny_qwen2, tmp_path)
    assert model_path(spec) == str(tiny_qwen2)
    make_weights(spec, pytest.fail)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_start_as_the_mean(tmp_path: Path, tokens: Path, tiny_qwen2: Path, tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = shutil.copytree(tiny_qwen2, tmp_path / "model")
    if not tied:
        whole = AutoModelForCausalLM.from_pretrained(model, tie_word_embeddings=False)
        torch.nn.init.normal_(whole.lm_head.weight)
        whole.save_pretrained(model)
    spec, said = spec_of(model, tmp_path, add_tokens=str(tokens)), []
    made = Path(model_path(spec))
    assert not has_weights(made)
    make_weights(spec, said.append)
    make_weights(spec, pytest.fail)  # once
    assert said == [f"making {made}: rows for the added tokens"]
    tokenizer = AutoTokenizer.from_pretrained(made)
    ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<tool>"])
    first = len(AutoTokenizer.from_pretrained(model))
    assert ids == [first, first + 1, first + 2]
    assert tokenizer.encode("alpha<tool>beta<|im_end|>")[-1] == ids[1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<tool>"
    rows = max(304, first + 3)
    assert read_model_shape(str(made)).vocab_size == rows
    before, after = (AutoModelForCausalLM.from_pretrained(place).state_dict() for place in (model, made))
    for name, weight in before.items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert after[name].shape[0] == rows
            assert torch.equal(after[name][:first], weight[:first])
            assert torch.allclose(after[name][first:], weight[:first].mean(0), atol=1e-6)
        else:
            assert torch.equal(after[name], weight)


def test_random_weights_need_none_and_go_by_the_seed(tmp_path: Path, tiny_qwen2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = shutil.copytree(tiny_qwen2, tmp_path / "model")
    pretrained = AutoModelForCausalLM.from_pretrained(model).state_dict()
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights (?s:.)*--init random needs none"):
        read_model_shape(str(model))
    made = []
    for seed in ("1", "2"):
        spec = spec_of(model, tmp_path, init="random", seed=seed)
        make_weights(spec, lambda line: None)
        made.append(AutoModelForCausalLM.from_pretrained(model_path(spec)).state_dict())
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(made[0][name], made[1][name]) and not torch.equal(made[0][name], pretrained[name])
    assert made[0][name].std().item() == pytest.approx(0.02, rel=0.05)  # initializer_range
    assert made[0].keys() == pretrained.keys()


def test_another_model_tokens_or_weights_make_another_directory(tmp_path: Path, tokens: Path, tiny_qwen2: Path) -> None:
    first = model_path(spec_of(tiny_qwen2, tmp_path, add_tokens=str(tokens)))
    assert model_path(spec_of(tiny_qwen2, tmp_path, add_tokens=str(tokens))) == first
    assert model_path(spec_of(tiny_qwen2, tmp_path, add_tokens=str(tokens), seed="7")) == first
    other = shutil.copytree(tiny_qwen2, tmp_path / "other")
    (other / "model.safetensors").touch()
    tokens.write_text("<one>\n")
    places = {first, model_path(spec_of(tiny_qwen2, tmp_path, add_tokens=str(tokens)))}
    places.add(model_path(spec_of(other, tmp_path, add_tokens=str(tokens))))
    assert len(places) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file"),
        ("\n", "no token in it"),
        ("<a>\n<b>\n<a>\n", "'<a>' is there twice"),
        ("<a>\nalpha beta\n<|endoftext|>\n", "'<|endoftext|>' is in the model's vocabulary already (1 of 3 are)"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_files_of_tokens(tmp_path: Path, tiny_qwen2: Path, content: Any, message: str) -> None:
    file = tmp_path / "bad.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError) as caught:
        model_path(spec_of(tiny_qwen2, tmp_path, add_tokens=str(file)))
    assert f"--add_tokens {file}: " in str(caught.value) and message in str(caught.value)
    assert not list((tmp_path / "_models").glob("*"))


def test_a_vision_language_model_is_refused(tmp_path: Path, shape_only_vlm_dir: Path) -> None:
    with pytest.raises(ModelError, match="is a vision-language model, and --init random is for language models"):
        model_path(spec_of(shape_only_vlm_dir, tmp_path, init="random"))


def test_too_large_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    spec = spec_of(write_shape_only_model(tmp_path / "model"), tmp_path, init="random")
    with pytest.raises(ModelError, match=r"the weights of model-\w+ take .* GiB, and 0.0 GiB of memory are free"):
        make_weights(spec, lambda line: None)
    assert not has_weights(Path(model_path(spec)))


def test_a_made_model_travels_to_other_machines(
    tmp_path: Path, tiny_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"file://{tmp_path}/far"
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "one"))
    spec = load_spec({"hf_model_path": str(tiny_qwen2), "storage_path": storage, "init": "random"})
    make_weights(spec, lambda line: None)
    here = Path(model_path(spec))
    share_model(here, storage)
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "two"))
    there = Path(str(here).replace("/one/", "/two/"))
    fetch_model(str(there), storage)
    assert json.loads((there / "made_of.json").read_text())["seed"] == spec.train.seed
    assert (there / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()

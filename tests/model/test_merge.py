"""Adapters worked into a model's files, against PEFT's own merge_and_unload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.families import make_model

from raymb.errors import RunFailed
from raymb.model.merge import merge
from raymb.model.source_files import write_source_files
from raymb.model.tensor_files import TensorFiles, tensor_shapes


def _adapter(model: Path, out: Path, **kind: Any) -> Path:
    """A PEFT adapter of a model, all of it random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"], **kind)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.rand(parameter.shape, generator=generator) + 0.5 * ("magnitude" in name)
    tuned.save_pretrained(str(out))
    return out


@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_as_peft_merges(kind: dict[str, bool], tiny_qwen2: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, target = _adapter(tiny_qwen2, tmp_path / "adapter", **kind), tmp_path / "merged"
    target.mkdir()
    merge(tiny_qwen2, adapter, target)
    write_source_files(tiny_qwen2, target)
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    ours = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()
    assert ours.keys() == expected.keys()
    source = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32).state_dict()
    changed = [name for name in ours if not torch.equal(ours[name], source[name])]
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj", "down_proj"}
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-6, atol=1e-6)
    assert {file.name for file in target.glob("token*")} == {file.name for file in tiny_qwen2.glob("token*")}


@pytest.mark.parametrize("family", ["Llama 3", "Qwen2"])
def test_modules_to_save_as_peft_merges_them(family: str, tmp_path: Path) -> None:
    """Of Qwen2 the output layer is the embedding."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, target = make_model(family, tmp_path / "model"), tmp_path / "merged"
    tied = family == "Qwen2"
    saved = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    adapter = _adapter(model, tmp_path / "adapter", modules_to_save=saved, ensure_weight_tying=tied)
    target.mkdir()
    merge(model, adapter, target)
    write_source_files(model, target)
    assert tensor_shapes(target) == tensor_shapes(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    ours = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).state_dict()
    assert ours.keys() == expected.keys()
    source = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-6, atol=1e-6)
    assert not any(torch.equal(ours[name], source[name]) for name in ("model.embed_tokens.weight", "lm_head.weight"))


def test_an_adapter_of_another_model_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    adapter = _adapter(tiny_qwen2, tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace("layers.3", "layers.9"): each for name, each in tensors.items()}, adapter / "a.safetensors")
    (adapter / "a.safetensors").replace(adapter / "adapter_model.safetensors")
    (tmp_path / "merged").mkdir()
    with pytest.raises(RunFailed, match=r"is no adapter of .*, which has no model.layers.9.mlp.down_proj"):
        merge(tiny_qwen2, adapter, tmp_path / "merged")


def test_a_kind_that_cannot_be_merged_is_refused(tiny_qwen2: Path, tmp_path: Path) -> None:
    adapter = _adapter(tiny_qwen2, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(RunFailed, match="cannot be merged"):
        merge(tiny_qwen2, adapter, tmp_path)


def test_tensors_are_spread_over_files_of_limited_size(tmp_path: Path) -> None:
    files = TensorFiles(tmp_path, limit=100)
    tensors = {f"layer{number}": torch.arange(float(number + 1) * 5) for number in range(6)}
    for name, tensor in tensors.items():
        files.add(name, tensor)
    files.close()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * len(tensor) for tensor in tensors.values())
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05d}-of-00005.safetensors" for n in range(1, 6)]
    assert tensor_shapes(tmp_path) == {name: [len(tensor)] for name, tensor in tensors.items()}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


def test_what_fits_into_one_file_has_no_index(tmp_path: Path) -> None:
    files = TensorFiles(tmp_path)
    files.add("only", torch.zeros(4, 4).t())
    files.close()
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]

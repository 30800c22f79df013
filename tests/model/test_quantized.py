"""Quantized weights are refused before the start, and the command that the refusal names makes them bf16."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, write_shape_only_model

from raymb.cli import main
from raymb.model.quantized import dequantizing
from raymb.model.shape import ModelShape

MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}


@pytest.mark.parametrize("command", [["plan"], ["data", "prepare"], ["finetune", "--dry_run"], ["submit", "slurm"]])
def test_it_is_refused_everywhere(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_shape_only_model(tmp_path / "model", QWEN2_4_LAYERS | {"quantization_config": FP8})
    words = [*command, "--hf_model_path", str(model), "--storage_path", str(tmp_path / "runs"), "--dataset", "sample"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "its weights are quantized (fp8, quantization_config in config.json)" in error
    assert "FineGrainedFP8Config as C" in error and "QLoRA" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_4_bit_base_and_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    model = write_shape_only_model(tmp_path / "model", QWEN2_4_LAYERS | config)
    assert main(["plan", "--hf_model_path", str(model), "--peft", "lora"]) == 2
    error = capsys.readouterr().err
    assert "quantized (bitsandbytes" in error and "there is no QLoRA in Megatron-Bridge" in error
    assert "python -c" not in error


def test_new_weights_are_not_quantized(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_shape_only_model(tmp_path / "model", QWEN2_4_LAYERS | {"quantization_config": FP8})
    words = ["plan", "--hf_model_path", str(model), "--init", "random", "--storage_path", str(tmp_path / "runs")]
    assert main(words) == 0, capsys.readouterr().err


def test_where_config_says_it() -> None:
    def said(**config: object) -> str:
        return ModelShape.from_config({**QWEN2_4_LAYERS, **config}).quantization

    assert (said(), said(quantization_config=None)) == ("", "")
    assert said(quantization_config={"quant_algo": "NVFP4"}) == "NVFP4"
    assert said(compression_config={"format": "pack"}) == "a method of its own"
    assert said(text_config={**QWEN2_4_LAYERS, "quantization_config": FP8}) == "fp8"


def in_mxfp4(tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    out = {}
    for name, one in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inner, outer = one.shape
            out[f"{name}_blocks"] = torch.full((experts, outer, inner // 32, 16), 0x22, dtype=torch.uint8)  # 1.0 each
            out[f"{name}_scales"] = torch.full((experts, outer, inner // 32), 126, dtype=torch.uint8)  # 2 to the -1
        else:
            out[name] = one
    return out


def in_fp8(tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    out = dict(tensors)
    for name, one in tensors.items():
        if one.ndim == 2 and "proj" in name:
            out[name] = torch.full_like(one, 0.25).to(torch.float8_e4m3fn)
            out[f"{name}_scale_inv"] = torch.full((-(-one.shape[0] // 128), -(-one.shape[1] // 128)), 2.0)
    return out


SMALL = {"num_hidden_layers": 2, "vocab_size": 99, "num_experts_per_tok": 2, "max_position_embeddings": 64}
GPT_OSS = SMALL | {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_local_experts": 4}
GPT_OSS |= {"num_attention_heads": 4, "num_key_value_heads": 2}
HEADS = {"kv_lora_rank": 128, "q_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
DEEPSEEK = SMALL | HEADS | {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "topk_group": 1}
DEEPSEEK |= {
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "first_k_dense_replace": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes", "quantize", "quantization"),
    [("GptOss", GPT_OSS, in_mxfp4, MXFP4), ("DeepseekV3", DEEPSEEK, in_fp8, FP8)],
)
def test_the_command_writes_bf16_under_the_names_of_a_bf16_model(
    kind: str,
    sizes: dict[str, Any],
    quantize: Callable[..., dict[str, Any]],
    quantization: dict[str, Any],
    tmp_path: Path,
) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from tests.data.published import small_tokenizer

    model = tmp_path / "model"
    config = getattr(transformers, f"{kind}Config")(**sizes)
    getattr(transformers, f"{kind}ForCausalLM")(config).bfloat16().save_pretrained(model)
    small_tokenizer("{{ messages }}").save_pretrained(model)
    weights = load_file(model / "model.safetensors")
    save_file(quantize(weights), model / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(said | {"quantization_config": quantization}))
    assert ModelShape.from_config(json.loads((model / "config.json").read_text())).quantization
    words = [sys.executable, *shlex.split(dequantizing(quantization["quant_method"], str(model)))[1:]]
    subprocess.run(words, check=True, cwd=tmp_path, capture_output=True, timeout=250)
    written = load_file(tmp_path / "model-bf16" / "model.safetensors")
    assert {name: one.shape for name, one in written.items()} == {name: one.shape for name, one in weights.items()}
    projections = [
        one for name, one in written.items() if name.endswith(("experts.down_proj", "experts.0.down_proj.weight"))
    ]
    assert projections and all(torch.equal(one, torch.full_like(one, 0.5)) for one in projections)
    assert not ModelShape.from_config(json.loads((tmp_path / "model-bf16" / "config.json").read_text())).quantization

"""The embedding and the output layer, trained in full beside adapters, against PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymb.model.tensor_files import tensor_shapes
from tests.families import make_model
from tests.smoke.conftest import curve, read_metrics, train_variant
from tests.smoke.peft_parity import ALL, train_as_peft

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(500)]
BOTH = "embed_tokens,lm_head"
PREFIX = "base_model.model."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "saved", "tensor", "pipeline", "flags"),
    [
        ("Llama 3", BOTH, 1, 1, {}),
        ("Llama 3", BOTH, 2, 1, {"peft": "dora"}),
        ("Llama 3", BOTH, 2, 2, {}),
        ("Llama 3", "lm_head", 1, 1, {"recompute": "full"}),
        ("Qwen2", "embed_tokens", 1, 1, {}),
        ("Qwen2", "embed_tokens", 2, 2, {}),
    ],
)
def test_trained_as_peft_trains_them(
    family: str, saved: str, tensor: int, pipeline: int, flags: dict[str, Any], tmp_path: Path, rows: Path
) -> None:
    """Qwen2's output layer is its embedding. No worker has as many rows as the next: 305 do not divide by 2."""
    model = make_model(family, tmp_path / "model", vocab_size=305)
    sizes = {"tensor_parallel_size": tensor, "pipeline_parallel_size": pipeline, "num_workers": tensor * pipeline}
    given = {"modules_to_save": saved, "train_iters": 5, "learning_rate": 1e-3, "dataset": rows, **sizes, **flags}
    kind = given.pop("peft", "lora")
    train_as_peft(tmp_path, model, kind, ALL, **given)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == saved.split(",")
    assert config.get("ensure_weight_tying", False) == (family == "Qwen2")


RUN = {
    "peft": "lora",
    "lora_rank": 4,
    "modules_to_save": BOTH,
    "learning_rate": 1e-2,
    "merge": True,
    "num_workers": 2,
    "tensor_parallel_size": 2,
    "save_interval": 3,
    "train_iters": 6,
}


@pytest.mark.parametrize("family", ["Llama 3", pytest.param("Qwen2", marks=pytest.mark.slow)])
def test_saved_resumed_exported_and_merged(
    family: str, finetune: Callable[..., Path], rows: Path, tmp_path: Path
) -> None:
    """A run that was stopped ends as one in peace; what it exports PEFT loads, and is the merged model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_model(family, tmp_path / "model", vocab_size=305)
    saved = BOTH if family == "Llama 3" else "embed_tokens"
    flags = {**RUN, "hf_model_path": base, "modules_to_save": saved}
    train_variant(tmp_path / "in-peace", 2, dataset=rows, export_hf=True, **flags)
    whole = tmp_path / "in-peace" / "run"
    finetune("train.exit_interval=3", **flags)
    stopped = finetune(**flags)
    assert curve(stopped) == curve(whole)
    for name in ("adapter/adapter_model.safetensors", "hf/model.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    (record,) = read_metrics(stopped, "export")
    assert record["error"] <= 1e-4 and len(record["directories"]) == 2

    def model(directory: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    ids, before = torch.arange(3, 40)[None], model(base)
    tuned: Any = PeftModel.from_pretrained(model(base), whole / "adapter")
    with torch.no_grad():
        logits, merged, former = (each(ids).logits for each in (tuned, model(whole / "hf"), before))
    torch.testing.assert_close(merged, logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(former, logits, atol=1e-2)
    moved = tuned.get_base_model().get_input_embeddings().weight - before.get_input_embeddings().weight
    assert moved.abs().max() > 1e-3
    tuned.save_pretrained(tmp_path / "again")
    assert tensor_shapes(tmp_path / "again") == tensor_shapes(whole / "adapter")


@pytest.mark.slow
def test_tokens_are_added_with_adapters(finetune: Callable[..., Path], tmp_path: Path) -> None:
    """PEFT puts the adapter onto the model that the tokens were added to."""
    base, tokens = make_model("Llama 3", tmp_path / "model"), tmp_path / "tokens.txt"
    tokens.write_text("<|mark|>\n<|end|>\n<other>\n")
    run = finetune(**{**RUN, "save_interval": 0, "hf_model_path": base, "add_tokens": tokens})
    (record,) = read_metrics(run, "export")
    assert record["error"] <= 1e-4 and len(record["directories"]) == 2
    shapes = tensor_shapes(run / "adapter")
    assert shapes[f"{PREFIX}model.embed_tokens.weight"] == shapes[f"{PREFIX}lm_head.weight"]
    assert shapes[f"{PREFIX}lm_head.weight"][0] == json.loads((run / "hf" / "config.json").read_text())["vocab_size"]
    named = json.loads((run / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == json.loads((run / "job.json").read_text())["model_path"] != str(base)

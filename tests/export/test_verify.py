"""What the verification of an export lets pass, and what it finds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raymb.errors import RunFailed
from raymb.export import finishing, verify
from raymb.export.finishing import FAILED, finish
from raymb.export.reference import Reference
from raymb.export.verify import check
from raymb.model.merge import merge
from raymb.model.source_files import write_source_files
from raymb.run.unverified import UnverifiedExport, VerificationRequest
from raymb.telemetry.export_line import exported_line


@pytest.fixture
def exported(tiny_qwen2: Path, tmp_path: Path) -> VerificationRequest:
    """An export that is the base itself, and what a model with these weights says of three rows."""
    from transformers import AutoModelForCausalLM

    model = shutil.copytree(tiny_qwen2, tmp_path / ".hf.partial")
    lengths = [9, 7, 12]
    ids = torch.randint(1, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        rows = zip(ids, lengths, strict=True)
        logits = torch.stack([loaded(input_ids=row[None, :length]).logits[0, -5:] for row, length in rows])
    save_file({"ids": ids, "lengths": torch.tensor(lengths), "logits": logits}, tmp_path / "reference.safetensors")
    reference = str(tmp_path / "reference.safetensors")
    return VerificationRequest(str(tiny_qwen2), str(model), "", reference, "fp32", False, None)


def _change_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.2.self_attn.k_proj.bias"] += 0.1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _swap_layers(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    first, last = (f"model.layers.{index}.mlp.down_proj.weight" for index in (0, 3))
    tensors[first], tensors[last] = tensors[last], tensors[first]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _leave_tensor_out(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _change_config(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))


def _change_tokenizer(model: Path) -> None:
    file = model / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    names = content["model"]["vocab"]
    names["A"], names["B"] = names["B"], names["A"]
    file.write_text(json.dumps(content), encoding="utf-8")


def _lose_generation_config(model: Path) -> None:
    (model / "generation_config.json").unlink()


def _bring_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages }}")


def test_a_right_one_passes(exported: VerificationRequest) -> None:
    found = check(exported)
    assert found["problems"] == [] and found["error"] <= 1e-6
    assert (found["tolerance"], found["rows"], found["positions"]) == (1e-4, 3, 15)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (_change_tensor, "model: its logits differ from the trained Megatron model's by .*, and 1e-04 is allowed"),
        (_leave_tensor_out, "1 tensors are not those of .*, first model.layers.1.mlp.up_proj.weight: None instead of"),
        (_change_config, "config.json: rms_norm_eps is 0.1 instead of 1e-06"),
        (_change_tokenizer, "the tokenizer's vocabulary in .* is not that of"),
        (_lose_generation_config, "generation_config.json is missing"),
        (_bring_template, "the tokenizer's chat template in .* is not that of"),
    ],
)
def test_what_is_found(damage: Callable[[Path], None], problem: str, exported: VerificationRequest) -> None:
    import re

    damage(Path(exported.model))
    problems = check(exported)["problems"]
    assert len(problems) == 1 and re.match(problem, problems[0]), problems


def test_what_lies_beside_the_source_does_not_count(
    exported: VerificationRequest, tiny_qwen2: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_qwen2, tmp_path / "source")
    (source / "original").mkdir()
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, source / "consolidated.safetensors")
    save_file({"model.norm.weight": torch.zeros(3)}, source / "model.fp16.safetensors")
    found = check(replace(exported, base=str(source)))
    assert found["problems"] == [] and found["error"] <= 1e-6


def test_what_bf16_cannot_tell_apart(exported: VerificationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verify.TOLERANCES, "bf16", 1e-6)  # a model that rounding changes by more than is allowed
    found = check(replace(exported, precision="bf16"))
    assert found["problems"] == [] and 1e-3 < found["error"] <= found["tolerance"] < 0.1
    _swap_layers(Path(exported.model))
    (problem,) = check(replace(exported, precision="bf16"))["problems"]
    assert problem.startswith("model: its logits differ from the trained Megatron model's by")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_merged_model_is_what_peft_makes(
    dtype: str, exported: VerificationRequest, tiny_qwen2: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_qwen2).save_pretrained(tmp_path / "adapter")
    tensors = load_file(exported.reference)
    before = Reference.read(Path(exported.reference))
    save_file({**tensors, "logits": before.logits_of(tuned)}, exported.reference)
    shutil.rmtree(exported.model)
    Path(exported.model).mkdir()
    merge(tiny_qwen2, tmp_path / "adapter", Path(exported.model), dtype)
    write_source_files(tiny_qwen2, Path(exported.model))
    request = replace(exported, adapter=str(tmp_path / "adapter"))
    found = check(request)
    assert found["problems"] == [] and found["error"] <= (1e-4 if dtype == "fp32" else 1e-2)
    trained, now = found["losses"]
    assert (trained == now) == (dtype == "fp32") and now == pytest.approx(trained, rel=0.01)
    _swap_layers(Path(exported.model))
    (problem,) = check(request)["problems"]
    assert problem.startswith("model: its logits differ from PEFT's merged model's by")


def test_what_is_to_be_merged_is_merged_before_it_is_verified(
    exported: VerificationRequest, tiny_qwen2: Path, tmp_path: Path
) -> None:
    """The workers have written the adapter, and of the model all but its tensors."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_qwen2, dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapter = tmp_path / ".adapter.partial"
    tuned.save_pretrained(adapter)
    AutoTokenizer.from_pretrained(tiny_qwen2).save_pretrained(adapter)
    before = Reference.read(Path(exported.reference))
    save_file({**load_file(exported.reference), "logits": before.logits_of(tuned)}, exported.reference)
    shutil.rmtree(exported.model)
    Path(exported.model).mkdir()
    write_source_files(tiny_qwen2, Path(exported.model))
    request = replace(exported, adapter=str(adapter))
    places = {tmp_path / "adapter": adapter, tmp_path / "hf": Path(exported.model)}
    findings = finish(UnverifiedExport(places, request, 1, merge="fp32"), lambda: None)
    assert findings["directories"] == list(map(str, places)) and findings["error"] <= 1e-4
    merged = load_file(tmp_path / "hf" / "model.safetensors")
    theirs = tuned.merge_and_unload().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.allclose(merged[name], theirs[name], atol=1e-6)


def test_a_merged_model_that_cannot_be_written_leaves_nothing(
    exported: VerificationRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finishing, "merge", full)
    written = UnverifiedExport({tmp_path / "hf": Path(exported.model)}, exported, 1, merge="source")
    with pytest.raises(RunFailed, match=r"the export cannot be written to .*No space left"):
        finish(written, lambda: None)
    assert not Path(exported.model).exists() and not Path(exported.reference).exists()


def test_a_type_that_loses_much_is_said() -> None:
    record = {"directories": ["/runs/x/hf"], "error": 0.0, "tolerance": 1e-4, "rows": 4, "losses": [2.0, 2.001]}
    assert exported_line(record).endswith("on 4 rows (1e-04 allowed)")
    line = exported_line({**record, "losses": [2.0, 2.1]})
    assert "it has a loss of 2.1000 there instead of 2.0000 (--export_dtype fp32 keeps" in line


def test_too_big_for_this_machine(exported: VerificationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_bytes_free", lambda: 1 << 10)
    found = check(exported)
    assert found["problems"] == [] and found["error"] is None
    line = exported_line({**found, "directories": ["/runs/x/hf"]})
    assert line.startswith("warning: hf/: tensors and tokenizer verified, logits not: loading it takes 0.0 GiB")


def test_one_that_passes_takes_the_place_of_the_older(exported: VerificationRequest, tmp_path: Path) -> None:
    target = tmp_path / "hf"
    target.mkdir()
    (target / "old").write_text("")
    findings = finish(UnverifiedExport({target: Path(exported.model)}, exported, 1), lambda: None)
    assert findings["directories"] == [str(target)] and findings["error"] <= 1e-6
    assert (target / "config.json").exists() and not (target / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    assert "hf/ verified: logits within" in exported_line(findings)


def test_one_that_fails_is_marked_and_the_older_stays(exported: VerificationRequest, tmp_path: Path) -> None:
    target = tmp_path / "hf"
    target.mkdir()
    (target / "old").write_text("")
    _change_tensor(Path(exported.model))
    with pytest.raises(RunFailed, match="the export is not what it should be: model: its logits differ") as failed:
        finish(UnverifiedExport({target: Path(exported.model)}, exported, 1), lambda: None)
    assert failed.value.hint == f"it is left in {tmp_path / 'hf-failed'}"
    assert (target / "old").exists()
    assert (tmp_path / "hf-failed" / FAILED).read_text().startswith("- model: its logits differ")
    assert (tmp_path / "hf-failed" / "model.safetensors").exists()


def test_one_that_cannot_be_loaded(exported: VerificationRequest, tmp_path: Path) -> None:
    (Path(exported.model) / "config.json").write_text("{}")
    with pytest.raises(RunFailed, match="it cannot be loaded: "):
        finish(UnverifiedExport({tmp_path / "hf": Path(exported.model)}, exported, 1), lambda: None)

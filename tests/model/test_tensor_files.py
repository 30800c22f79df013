"""Shapes in safetensors files, the vocabulary's padding, and the comparison with the source model."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymb.model.tensor_files import prediction_tensors, tensor_differences, tensor_shapes, tensor_types, trimmed

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


def _write(directory: Path, rows: int = 5, **more: tuple[int, ...]) -> Path:
    directory.mkdir(exist_ok=True)
    shapes = {EMBEDDING: (rows, 4), NORM: (4,), **more}
    tensors = {name: torch.arange(float(torch.Size(shape).numel())).reshape(shape) for name, shape in shapes.items()}
    safetensors.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_shapes_come_from_every_file_and_metadata_is_no_tensor(tmp_path: Path) -> None:
    safetensors.save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    safetensors.save_file({"b": torch.zeros(())}, tmp_path / "model-2.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert tensor_shapes(tmp_path) == {"a": [2, 3], "b": []}


def test_same_tensors_pass(tmp_path: Path) -> None:
    assert tensor_differences(_write(tmp_path / "written"), _write(tmp_path / "source")) == []


def test_a_hub_model_is_not_compared(tmp_path: Path) -> None:
    assert tensor_differences(_write(tmp_path / "written"), Path("owner/name")) == []


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"rows": 6}, "first model.embed_tokens.weight: [6, 4] instead of [5, 4]"),
        ({"extra": (1,)}, "first extra: [1] instead of None"),
    ],
)
def test_difference_is_named(tmp_path: Path, written: dict, message: str) -> None:
    (found,) = tensor_differences(_write(tmp_path / "written", **written), _write(tmp_path / "source"))
    assert found.startswith("1 tensors are not those of") and found.endswith(message)


def test_padding_is_cut_off_the_vocabulary_only() -> None:
    padded = torch.arange(32.0).reshape(8, 4)
    for name in (EMBEDDING, "lm_head.weight"):
        assert torch.equal(trimmed(name, padded, padded=8, vocabulary=5), padded[:5])
    assert trimmed("model.layers.0.mlp.weight", padded, padded=8, vocabulary=5) is padded
    assert trimmed(EMBEDDING, padded, padded=9, vocabulary=5) is padded


def test_types_are_told_a_tensor_at_a_time(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2), "c": torch.zeros(2, dtype=torch.int64)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    assert tensor_types(tmp_path) == {"a": "BF16", "b": "F32", "c": "I64"}


def test_tensors_of_multi_token_prediction() -> None:
    """As DeepSeek-V3 and GLM-4.5, MiMo, and Qwen3-Next name them; a vision tower has layers of its own."""
    beside = ["model.layers.4.eh_proj.weight", "model.layers.11.mlp.up_proj.weight", "model.mtp_layers.0.enorm.weight"]
    beside += ["mtp.fc.weight", "model.language_model.layers.4.enorm.weight"]
    names = ["model.layers.3.mlp.up_proj.weight", "lm_head.weight", "model.visual.layers.7.attn.qkv.weight"]
    assert prediction_tensors([*names, *beside], 4) == beside

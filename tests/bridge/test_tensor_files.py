"""Shapes in safetensors files, the vocabulary's padding, and the comparison with the source model."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymb.bridge.tensor_files import check_same_tensors, tensor_shapes, trim_vocabulary
from raymb.errors import RunFailed

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
    check_same_tensors(_write(tmp_path / "written"), _write(tmp_path / "source"))


def test_a_hub_model_is_not_compared(tmp_path: Path) -> None:
    check_same_tensors(_write(tmp_path / "written"), Path("owner/name"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"rows": 6}, r"in 1 tensors, first model.embed_tokens.weight: \[6, 4\] instead of \[5, 4\]"),
        ({"extra": (1,)}, r"in 1 tensors, first extra: \[1\] instead of None"),
    ],
)
def test_difference_is_named(tmp_path: Path, written: dict, message: str) -> None:
    with pytest.raises(RunFailed, match=message) as caught:
        check_same_tensors(_write(tmp_path / "written", **written), _write(tmp_path / "source"))
    assert str(tmp_path / "written") in caught.value.hint


def test_padding_is_cut_off_the_vocabulary_only(tmp_path: Path) -> None:
    _write(tmp_path, rows=8, **{"lm_head.weight": (8, 4), "model.layers.0.mlp.weight": (8, 4)})
    trim_vocabulary(tmp_path, padded=8, vocabulary=5)
    assert tensor_shapes(tmp_path) == {
        EMBEDDING: [5, 4],
        "lm_head.weight": [5, 4],
        "model.layers.0.mlp.weight": [8, 4],
        NORM: [4],
    }
    kept = safetensors.load_file(tmp_path / "model.safetensors")[EMBEDDING]
    assert torch.equal(kept, torch.arange(32.0).reshape(8, 4)[:5])


def test_without_padding_no_file_is_touched(tmp_path: Path) -> None:
    file = _write(tmp_path) / "model.safetensors"
    before = file.stat().st_mtime_ns
    trim_vocabulary(tmp_path, padded=5, vocabulary=5)
    assert file.stat().st_mtime_ns == before

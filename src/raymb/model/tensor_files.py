"""The safetensors files of a Hugging Face directory: shapes, the vocabulary's padding, and whether two agree."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymb.errors import ModelError

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that are the model's: those that the index names, else model.safetensors; only where there
    is neither, all that there are. Others (consolidated.safetensors, adapters, variants) lie beside them in many
    repositories, some with tensors of the same names."""
    if (directory / INDEX).is_file():
        return [directory / name for name in named_by_index(directory / INDEX)]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    return sorted(directory.glob("*.safetensors"))


def named_by_index(index: Path) -> list[str]:
    """The files that an index names.

    Raises:
        ModelError: it is no index.
    """
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(
            f"--hf_model_path {index.parent}: {index.name} is not a weight index", "fetch the model again"
        ) from None


def truncated(file: Path) -> str:
    """What a safetensors file lacks of its bytes, by its header; "" for nothing."""
    size = file.stat().st_size
    try:
        header, begin = _header(file)
        needed = begin + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, MemoryError):
        return f"{size:,} bytes without a header of safetensors"
    return f"{size:,} of {needed:,} bytes" if size < needed else ""


def tensor_shapes(directory: Path) -> dict[str, list[int]]:
    """Name to shape of every tensor of the model in a directory, from the headers of its safetensors files."""
    return {name: entry["shape"] for name, entry in _entries(directory).items()}


def tensors_by_file(directory: Path) -> dict[str, str]:
    """Name of every tensor of the model to the name of the file that it is in."""
    return {name: file.name for file in weight_files(directory) for name in _header(file)[0]}


def tensor_types(directory: Path) -> dict[str, str]:
    """Name to safetensors' name of the type of every tensor there."""
    return {name: entry["dtype"] for name, entry in _entries(directory).items()}


_TYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_ASKED = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def type_to_write(asked: str, stored: str | None) -> str:
    """torch's name of the floating-point type that a tensor is written in.

    Args:
        asked: source, bf16, fp16 or fp32.
        stored: safetensors' name of the type that the source has; fp32 where that is none of these.
    """
    return _TYPES.get(stored or "", "float32") if asked == "source" else _ASKED[asked]


def converted(tensor: torch.Tensor, asked: str, stored: str | None) -> torch.Tensor:
    """A tensor as it is to be written (see type_to_write); integers stay what they are."""
    import torch

    return tensor.to(getattr(torch, type_to_write(asked, stored))) if tensor.is_floating_point() else tensor


_NOT_EXPORTED = ("lm_head.weight", "rotary_emb.inv_freq")
"""Tensors that some sources carry although they follow from others: a tied output layer, rotary frequencies."""


class TensorFiles:
    """Writes model.safetensors, or numbered files and their index where the tensors do not fit into one file, a tensor
    at a time: no more than a file is held.

    Args:
        directory: exists, and has no tensor files.
        limit: bytes of a file.
    """

    def __init__(self, directory: Path, limit: int = 2 << 30):
        self.directory, self.limit = directory, limit
        self.held: dict[str, torch.Tensor] = {}
        self.files: list[list[str]] = []
        self.bytes = self.total = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor; the files so far are written when it does not fit any more."""
        size = tensor.numel() * tensor.element_size()
        if self.held and self.bytes + size > self.limit:
            self._write()
        self.held[name] = tensor.contiguous()
        self.bytes, self.total = self.bytes + size, self.total + size

    def close(self) -> None:
        """Write the rest, and give the files their names."""
        if self.held:
            self._write()
        count = len(self.files)
        names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        names = names if count > 1 else ["model.safetensors"]
        for number, name in enumerate(names):
            os.replace(self._part(number), self.directory / name)
        if count > 1:
            files = {tensor: name for name, tensors in zip(names, self.files, strict=True) for tensor in tensors}
            index = {"metadata": {"total_size": self.total}, "weight_map": files}
            (self.directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def _write(self) -> None:
        from safetensors.torch import save_file

        save_file(self.held, self._part(len(self.files)), metadata={"format": "pt"})
        self.files.append(list(self.held))
        self.held, self.bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.directory / f"part-{number:05d}.safetensors"


def trimmed(name: str, tensor: torch.Tensor, padded: int, vocabulary: int) -> torch.Tensor:
    """Without the rows that Megatron adds to the embedding and the output layer, to divide a vocabulary by TP.

    Args:
        padded: rows that Megatron trained with.
        vocabulary: rows of the source model.
    """
    return tensor[:vocabulary] if is_vocabulary(name) and tensor.shape[0] == padded else tensor


def tensor_differences(written: Path, source: Path) -> list[str]:
    """A sentence, if not every tensor of the source is there with its shape, and no other. A source without safetensors
    files is not compared."""
    expected, found = tensor_shapes(source), tensor_shapes(written)
    absent = {name for name in expected.keys() - found.keys() if name.endswith(_NOT_EXPORTED)}
    wrong = sorted(name for name in (expected.keys() | found.keys()) - absent if expected.get(name) != found.get(name))
    if not expected or not wrong:
        return []
    shapes = f"{found.get(wrong[0])} instead of {expected.get(wrong[0])}"
    return [f"{len(wrong)} tensors are not those of {source}, first {wrong[0]}: {shapes}"]


def prediction_tensors(names: Iterable[str], layers: int) -> list[str]:
    """Those of multi-token prediction, which transformers does not load: behind the last layer, or beside the model.

    Args:
        layers: num_hidden_layers.
    """
    found = {
        name: re.match(r"(?:model\.)?(?:mtp(?:_layers)?\.|(?:language_model\.)?layers\.(\d+)\.)", name)
        for name in names
    }
    return [name for name, match in found.items() if match and (match[1] is None or int(match[1]) >= layers)]


def is_vocabulary(name: str) -> bool:
    """Whether a tensor may have a row for each token."""
    return "embed" in name or "lm_head" in name


def _entries(directory: Path) -> dict[str, dict[str, Any]]:
    return {name: entry for file in weight_files(directory) for name, entry in _header(file)[0].items()}


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(name to type, shape and place of every tensor, where their bytes begin)."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(min(length, file.stat().st_size)))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}, 8 + length

"""The trained Megatron model to a Hugging Face directory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.bridge.models.conversion.auto_bridge import AutoBridge

from raymb.errors import RunFailed


def write_hf_model(hf_bridge: AutoBridge, model: list[Any], directory: str, source: str) -> None:
    """Write and check the directory; collective, called on every rank. It appears whole or not at all.

    Args:
        model: this rank's model chunks.
        directory: the target; an older export there is replaced.
        source: the model the training started from; where it is a local directory, tensor names and shapes are
            compared with its own.

    Raises:
        RunFailed: the export's tensors are not the source's.
    """
    target = Path(directory)
    partial = target.with_name(f".{target.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    hf_bridge.save_hf_pretrained(model, str(partial), show_progress=False)
    dist.barrier()
    if dist.get_rank() == 0:
        _check_tensors(partial, Path(source))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    dist.barrier()


def _check_tensors(written: Path, source: Path) -> None:
    if not any(source.glob("*.safetensors")):
        return
    expected, found = tensor_shapes(source), tensor_shapes(written)
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise RunFailed(
            f"the exported model differs from {source} in {len(wrong)} tensors, first {name}: "
            f"{found.get(name)} instead of {expected.get(name)}",
            f"the export is left in {written}",
        )


def tensor_shapes(directory: Path) -> dict[str, list[int]]:
    """Name to shape of every tensor in the directory's safetensors files, from their headers."""
    shapes: dict[str, list[int]] = {}
    for file in directory.glob("*.safetensors"):
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        shapes |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return shapes

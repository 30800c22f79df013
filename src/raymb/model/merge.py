"""A Hugging Face model with a PEFT adapter worked into its matrices, file to file: neither is ever held whole."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from raymb.errors import RunFailed
from raymb.model.tensor_files import TensorFiles, converted, tensor_types, weight_files
from raymb.model.vision import module_name

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."


class Adapter:
    """A PEFT adapter directory: LoRA or DoRA on linear layers.

    Raises:
        RunFailed: it is of another kind.
    """

    def __init__(self, directory: Path):
        from safetensors.torch import load_file

        self.config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
        self.tensors = load_file(directory / "adapter_model.safetensors")
        if self.config["peft_type"] != "LORA" or self.config.get("target_parameters") or self.config["rank_pattern"]:
            raise RunFailed(f"{directory}: this kind of adapter cannot be merged", "merge it with PEFT")
        rank = self.config["r"]
        self.scaling = self.config["lora_alpha"] / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        self.unused = {name for name in self.tensors if name.endswith(".lora_A.weight") or ".lora_" not in name}
        if self.config.get("ensure_weight_tying"):  # the output layer is the embedding, and in no file of many models
            self.unused = {name for name in self.unused if not name.endswith("lm_head.weight")}

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """W + scaling x B A, or m / |W + scaling x B A| x (W + scaling x B A), in fp32; of modules_to_save the
        adapter's own.

        Args:
            name: of the weight in transformers' model of the base.
            weight: [outputs, inputs].
        """
        self.unused.discard(_PREFIX + name)
        if (saved := self.tensors.get(_PREFIX + name)) is not None:
            return saved
        module = _PREFIX + name.removesuffix(".weight")
        first = self.tensors.get(f"{module}.lora_A.weight")
        if first is None:
            return weight
        self.unused.discard(f"{module}.lora_A.weight")
        second = self.tensors[f"{module}.lora_B.weight"]
        whole = weight.float() + second.float() @ first.float() * self.scaling
        magnitude = self.tensors.get(f"{module}.lora_magnitude_vector")
        if magnitude is not None:
            import torch

            whole = magnitude.float()[:, None] / torch.linalg.norm(whole, dim=1, keepdim=True) * whole
        return whole


def merge(base: Path, adapter: Path, target: Path, dtype: str = "source") -> None:
    """Write the tensors of the merged model.

    Args:
        base: Hugging Face directory with safetensors files.
        adapter: PEFT directory.
        target: a directory that exists.
        dtype: source (each tensor as in the base), bf16, fp16 or fp32.

    Raises:
        RunFailed: the adapter is of another model, or of a kind that cannot be merged.
    """
    tuned, files, types = Adapter(adapter), TensorFiles(target), tensor_types(base)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or [""])[0]
    for name, weight in tensors_of(base):
        merged = tuned.merged(module_name(architecture, name), weight)
        files.add(name, converted(merged, dtype, types[name]))
    files.close()
    if tuned.unused:
        one = min(tuned.unused).removeprefix(_PREFIX).removesuffix(".weight").removesuffix(".lora_A")
        raise RunFailed(f"{adapter} is no adapter of {base}, which has no {one}", "name the model that it was made of")


def tensors_of(directory: Path, wanted: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """The wanted tensors of the model in a directory, or all, one at a time."""
    for file in weight_files(directory):
        with safe_open(file, framework="pt") as content:
            names = list(content.keys())
        names = [name for name in names if wanted is None or name in wanted]
        for name in names:
            # Opened for each tensor: what was read stays mapped until the file is closed.
            with safe_open(file, framework="pt") as content:
                yield name, content.get_tensor(name)

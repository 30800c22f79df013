"""What the trained Megatron model says on held-out rows, and how far from it another model is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SHARE = 0.9
"""Share of the positions that must be near: with 16 bits, a router may send a token to another expert."""


@dataclass(frozen=True)
class Reference:
    """What bridge.reference.write_reference wrote: `positions` are the last ones of each row.

    Args:
        ids: [rows, tokens], lengths: [rows].
        logits: [rows, positions, vocabulary], of the Megatron model with the weights of the export.
        trained: the same with the weights as they were trained.
        beside: the other inputs of a model, for each row.
    """

    ids: torch.Tensor
    lengths: list[int]
    logits: torch.Tensor
    trained: torch.Tensor
    beside: list[dict[str, torch.Tensor]]

    @staticmethod
    def read(file: Path) -> Reference:
        from safetensors.torch import load_file

        tensors = load_file(file)
        logits, lengths = tensors["logits"], tensors["lengths"].tolist()
        beside: list[dict[str, Any]] = [{} for _ in lengths]
        for name, tensor in tensors.items():
            if "." in name:
                argument, _, row = name.partition(".")
                beside[int(row)][argument] = tensor
        return Reference(tensors["ids"], lengths, logits, tensors.get("trained", logits), beside)

    def logits_of(self, model: Any) -> torch.Tensor:
        """A Hugging Face model's logits: [rows, positions, vocabulary]."""
        import torch

        model.eval()
        with torch.inference_mode():
            rows, last = zip(self.ids, self.lengths, self.beside, strict=True), self.logits.shape[1]
            logits = [model(input_ids=ids[None, :length], **more).logits[0, -last:] for ids, length, more in rows]
        return torch.stack(logits).float()

    def loss(self, logits: torch.Tensor) -> float:
        """Mean over the positions that have a next token."""
        import torch
        from torch.nn.functional import cross_entropy

        last = self.logits.shape[1]
        rows = zip(self.ids, self.lengths, strict=True)
        targets = torch.stack([ids[length - last + 1 : length] for ids, length in rows])
        return cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten()).item()


def distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Of a position: the root mean square of the difference over that of the expected logits' spread. Of all: the
    largest but for one in ten."""
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    ranked = ((logits - expected).norm(dim=-1) / spread).flatten().nan_to_num(nan=math.inf).sort().values
    return ranked[min(len(ranked) - 1, int(_SHARE * len(ranked)))].item()


@contextlib.contextmanager
def computing_in_fp32(model: Any) -> Iterator[None]:
    """Cast each module's weights to fp32 while it is used, those of one module at a time."""
    kept: dict[Any, list[torch.Tensor]] = {}

    def widen(module: Any, _: Any) -> None:
        kept[module] = [one.data for one in module.parameters(recurse=False)]
        for one in module.parameters(recurse=False):
            one.data = one.data.float()

    def put_back(module: Any, *_: Any) -> None:
        for one, data in zip(module.parameters(recurse=False), kept.pop(module), strict=True):
            one.data = data

    having = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    hooks = [module.register_forward_pre_hook(widen) for module in having]
    hooks += [module.register_forward_hook(put_back) for module in having]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""What the stand-in's modules share: initialization under Megatron's RNG tracker, parallel marks, empty FP8 state."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class TransformerEngineModule(torch.nn.Module):
    """A module whose state dict has Transformer Engine's `_extra_state`, which without FP8 is an empty byte tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fp8 = False
        self.fp8_calibration = False
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False, "recipe": None}

    def init_fp8_metadata(self, num_gemms: int = 1) -> None: ...

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """FP8 scales of a GPU run have no use here: the weights in the checkpoint are complete without them."""


def initialize(
    parameter: torch.Tensor, init_method: Callable | None, tracker: Callable[[], Any] | None, tracker_name: str | None
) -> None:
    """Fill a parameter as Transformer Engine does: N(0, 0.023) unless told otherwise, under the tracker's seed.

    Args:
        tracker: returns Megatron's RNG tracker; None draws from the default generator.
        tracker_name: a state of the tracker; None is its model-parallel one.
    """
    names = (tracker_name,) if tracker_name else ()
    with torch.no_grad(), tracker().fork(*names) if tracker else nullcontext():
        (init_method or (lambda weight: torch.nn.init.normal_(weight, mean=0.0, std=0.023)))(parameter)


def mark_parallel(parameter: torch.Tensor, dim: int) -> None:
    """Tell Megatron that a parameter is split over the tensor parallel group along `dim`."""
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    parameter.partition_dim = dim  # type: ignore[attr-defined]
    parameter.partition_stride = 1  # type: ignore[attr-defined]


def refuse(reason: str, **settings: Any) -> None:
    """Raise for the first setting that is on."""
    for name, value in settings.items():
        if value:
            raise RuntimeError(f"{name}={value}: {reason}")

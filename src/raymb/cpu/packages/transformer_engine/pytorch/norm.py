"""LayerNorm and RMSNorm, computed in fp32 as the CUDA kernels do."""

from typing import Any

import torch
import torch.nn.functional as F


def apply_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, kind: str, zero_centered_gamma: bool
) -> torch.Tensor:
    """Normalize the last dimension.

    Args:
        x: [..., hidden], any floating type; the result has the same type.
        kind: "LayerNorm" or "RMSNorm".
        zero_centered_gamma: the scale is 1 + weight.
    """
    scale = weight.float() + 1 if zero_centered_gamma else weight.float()
    if kind == "RMSNorm":
        return F.rms_norm(x.float(), scale.shape, scale, eps).to(x.dtype)
    return F.layer_norm(x.float(), scale.shape, scale, None if bias is None else bias.float(), eps).to(x.dtype)


class _Norm(torch.nn.Module):
    kind: str

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        sequence_parallel: bool | None = None,
        params_dtype: torch.dtype | None = None,
        zero_centered_gamma: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **ignored: Any,
    ):
        super().__init__()
        self.eps = eps
        self.sequence_parallel = sequence_parallel
        self.zero_centered_gamma = zero_centered_gamma
        fill = torch.zeros if zero_centered_gamma else torch.ones
        place = {"device": device, "dtype": params_dtype or dtype}
        self.weight = torch.nn.Parameter(fill(normalized_shape, **place))
        self.bias = torch.nn.Parameter(torch.zeros(normalized_shape, **place)) if self.kind == "LayerNorm" else None
        for parameter in self.parameters():
            parameter.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return apply_norm(x, self.weight, self.bias, self.eps, self.kind, self.zero_centered_gamma)

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None: ...


class LayerNorm(_Norm):
    kind = "LayerNorm"


class RMSNorm(_Norm):
    kind = "RMSNorm"

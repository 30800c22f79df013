"""RMSNorm of groups of channels, with a gate before or after it."""

from typing import Any

import torch
import torch.nn.functional as F


class RMSNorm(torch.nn.Module):
    """
    Args:
        group_size: channels that are normalized together; all of them if None.
        norm_before_gate: norm(x) silu(z) rather than norm(x silu(z)), where there is a z.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.group_size = group_size
        self.norm_before_gate = norm_before_gate

    def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
        return rms_norm(x, self.weight, z, self.eps, self.group_size, self.norm_before_gate)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    z: torch.Tensor | None,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
) -> torch.Tensor:
    """Over the last dimension, in fp32, in the type of x."""
    out, gate = x.float(), None if z is None else F.silu(z.float())
    if gate is not None and not norm_before_gate:
        out = out * gate
    grouped = out.unflatten(-1, (-1, group_size or out.shape[-1]))
    out = F.rms_norm(grouped, grouped.shape[-1:], None, eps).flatten(-2) * weight.float()
    if gate is not None and norm_before_gate:
        out = out * gate
    return out.to(x.dtype)

"""Adapters on matrices whose module norms their output, too: what an adapter adds comes before the norm, as in PEFT."""

from __future__ import annotations

from typing import Any

import torch
from megatron.bridge.models.common.te_layers import TERowParallelLinearLayerNorm

from raymb.bridge.patches.patch import Patch, text_of

_NORMED = "megatron.bridge.models.common.te_layers:TERowParallelLinearLayerNorm.forward"
_LORA = "megatron.bridge.peft.lora_layers:LoRALinear.forward"
_DORA = "megatron.bridge.peft.dora_layers:DoRALinear.forward"


class _BeforeNorm:
    """Put before a wrapper's class, which then has the matrix alone, and whose sum is normed."""

    to_wrap: Any

    def base_linear_forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        output, bias = super(TERowParallelLinearLayerNorm, self.to_wrap).forward(x)
        return output, bias, x

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, bias = super().forward(x)  # type: ignore[misc]
        assert bias is None, "it would be added after the norm"
        return self.to_wrap.post_layernorm(output), bias


def add_before_norm(wrapper: Any) -> Any:
    """A wrapper of LoRA or DoRA, such that its sum is before the norm of what it wraps, if that has one."""
    cls = type(wrapper)
    if isinstance(wrapper.to_wrap, TERowParallelLinearLayerNorm):
        wrapper.__class__ = type(f"{cls.__name__}BeforeNorm", (_BeforeNorm, cls), {})
    return wrapper


def _adds_after_norms() -> bool:
    norms_within = "return self.post_layernorm(output), bias" in text_of(_NORMED)
    sums = {
        _LORA: "return linear_output + adapter_output, bias",
        _DORA: "return mag_norm_scale * (linear_output + adapter_output) + dropout_correction, bias",
    }
    return norms_within and all(total in text_of(symbol) for symbol, total in sums.items())


PATCHES = (
    Patch(
        "adapters before norms",
        "megatron-bridge",
        "0.6.2",
        _LORA,
        "an adapter on a matrix that TERowParallelLinearLayerNorm norms the output of (Gemma 2 and 3, EXAONE 4: "
        "attention's and the feed-forward's last) adds to the norm's output, where PEFT adds to its input; so does "
        "DoRALinear.forward",
        _adds_after_norms,
        add_before_norm,
    ),
)

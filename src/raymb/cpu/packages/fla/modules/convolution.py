"""A convolution of each channel over the tokens before it, of [batch, tokens, channels]."""

from typing import Any

import torch

from causal_conv1d import causal_conv1d_fn


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    activation: str | None = None,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(result, None).

    Args:
        weight: [channels, width].
        cu_seqlens: where the sequences of the one row begin and end.
    """
    if initial_state is not None or output_final_state:
        raise NotImplementedError("the CPU backend trains, and training has no states of a convolution")
    sequence = None if cu_seqlens is None else sequences(cu_seqlens, x.shape[1])[None]
    out: Any = causal_conv1d_fn(x.transpose(1, 2), weight, bias, seq_idx=sequence, activation=activation)
    return out.transpose(1, 2), None


def sequences(cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """[tokens], the sequence of each."""
    return torch.bucketize(torch.arange(tokens), cu_seqlens[1:], right=True)

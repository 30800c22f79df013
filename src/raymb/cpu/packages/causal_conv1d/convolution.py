"""A convolution of each channel over the tokens before it."""

import torch
import torch.nn.functional as F


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """[batch, channels, tokens], in fp32, in the type of x; with return_final_states also the last width - 1 inputs.

    Args:
        weight: [channels, width]; the last column is the token's own.
        seq_idx: [batch, tokens], the sequence that each token belongs to; it sees no token of another.
        initial_states: [batch, channels, width - 1], what comes before the first token; zeros if None.
        activation: silu, swish or None.
    """
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(f"activation {activation!r}; causal-conv1d has silu")
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise NotImplementedError("states of packed sequences, which causal-conv1d does not have, either")
    width, tokens = weight.shape[1], x.shape[2]
    before = x.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states
    inputs = torch.cat([before, x], dim=-1)
    out = torch.zeros_like(x, dtype=torch.float32)
    for tap in range(width):
        seen = inputs[..., tap : tap + tokens].float()
        if seq_idx is not None:
            back = width - 1 - tap
            same = F.pad(seq_idx, (back, 0), value=-1)[:, :tokens] == seq_idx
            seen = seen * same[:, None]
        out = out + weight[:, tap, None].float() * seen
    if bias is not None:
        out = out + bias[:, None].float()
    out = (out if activation is None else F.silu(out)).to(x.dtype)
    return (out, inputs[..., tokens:]) if return_final_states else out

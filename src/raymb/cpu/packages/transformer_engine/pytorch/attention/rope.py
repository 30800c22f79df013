"""Rotary position embedding over `sbhd` and packed `thd` tensors."""

import torch

from transformer_engine.pytorch.attention.context_parallel import positions_of_rank


def apply_rotary_pos_emb(
    t: torch.Tensor,
    freqs: torch.Tensor,
    tensor_format: str = "sbhd",
    start_positions: torch.Tensor | None = None,
    interleaved: bool = False,
    fused: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cp_size: int = 1,
    cp_rank: int = 0,
) -> torch.Tensor:
    """Rotate the first freqs.shape[-1] channels of each head.

    Args:
        t: [s, b, h, d], [b, s, h, d] or, packed, [tokens, h, d].
        freqs: [positions, 1, 1, rotated channels], angles in radians.
        interleaved: pairs are neighbours instead of halves.
        cu_seqlens: `thd`: where sequences begin, over all context parallel ranks, [sequences + 1].
    """
    if start_positions is not None:
        raise RuntimeError("start_positions belongs to inference, which the CPU backend leaves to transformers")
    if tensor_format == "thd":
        assert cu_seqlens is not None
        lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
        angles = freqs[torch.cat([positions_of_rank(length, cp_size, cp_rank) for length in lengths]), 0]
    elif tensor_format == "bshd":
        angles = freqs[: t.shape[1]].transpose(0, 1)
    else:
        angles = freqs[: t.shape[0]]
    rotated, rest = t[..., : freqs.shape[-1]], t[..., freqs.shape[-1] :]
    cos, sin = angles.cos().to(t.dtype), angles.sin().to(t.dtype)
    return torch.cat((rotated * cos + _rotate_half(rotated, interleaved) * sin, rest), dim=-1)


def _rotate_half(x: torch.Tensor, interleaved: bool) -> torch.Tensor:
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)

"""Mamba 2's state space: each head's state [channels, states] fades and takes in a token at a time,

    S_t = exp(dt_t A) S_(t-1) + dt_t x_t B_t^T,    y_t = S_t C_t + D x_t,

computed a chunk of tokens at a time: within a chunk as a masked product of matrices, between chunks by the state.
"""

from typing import Any

import torch
import torch.nn.functional as F

from causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.triton.layernorm_gated import rms_norm

_NO_LIMIT = (0.0, float("inf"))


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = _NO_LIMIT,
    return_final_states: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """[batch, tokens, heads, channels], computed in fp32, in the type of x; with return_final_states also the states
    after the last token.

    Args:
        x, z: [batch, tokens, heads, channels]; the result is multiplied by silu(z).
        dt: [batch, tokens, heads], added to dt_bias [heads], and kept within dt_limit.
        A: [heads], negative.
        B, C: [batch, tokens, groups, states]; a group serves as many heads as another.
        D: [heads] or [heads, channels].
        initial_states: [batch, heads, channels, states], before the first token; zeros if None.
        seq_idx: [batch, tokens], the sequence that each token belongs to; no state passes from one to another.
    """
    heads = x.shape[2]
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit)
    inputs, outputs = (part.float().repeat_interleave(heads // part.shape[2], dim=2) for part in (B, C))
    values = x.float()
    state = values.new_zeros(*x.shape[:1], heads, x.shape[3], B.shape[3]) if initial_states is None else initial_states
    state = state.float()
    sequence = torch.zeros(x.shape[:2], dtype=torch.long) if seq_idx is None else seq_idx
    before, results = sequence[:, 0], []
    for start in range(0, x.shape[1], chunk_size):
        part = slice(start, start + chunk_size)
        chunk = (values[:, part], step[:, part], inputs[:, part], outputs[:, part], sequence[:, part])
        result, state = _chunk(*chunk, A.float(), state, before)
        results.append(result)
        before = chunk[-1][:, -1]
    out = torch.cat(results, dim=1)
    if D is not None:
        out = out + values * (D.float() if D.dim() == 2 else D.float()[:, None])
    if z is not None:
        out = out * F.silu(z.float())
    out = out.to(x.dtype)
    return (out, state) if return_final_states else out


def _chunk(
    values: torch.Tensor,
    step: torch.Tensor,
    inputs: torch.Tensor,
    outputs: torch.Tensor,
    sequence: torch.Tensor,
    A: torch.Tensor,
    state: torch.Tensor,
    before: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(results, state after the last token) of a chunk.

    Args:
        state: before the first token, of the sequence `before` [batch].
    """
    fade = (step * A).cumsum(dim=1)  # logarithm of what is left of a state since before the first token
    same = sequence[:, :, None] == sequence[:, None, :]
    seen = (same & torch.ones_like(same).tril())[..., None]
    left = (fade[:, :, None] - fade[:, None]).masked_fill(~seen, float("-inf")).exp()  # [batch, to, from, heads]
    weights = torch.einsum("bihn,bjhn->bijh", outputs, inputs) * left * step[:, None]
    result = torch.einsum("bijh,bjhp->bihp", weights, values)
    goes_on = (sequence == before[:, None])[..., None]
    result = result + torch.einsum("bihn,bhpn->bihp", outputs * (fade.exp() * goes_on)[..., None], state)
    taken = (left[:, -1] * step)[..., None] * inputs
    kept = (fade[:, -1].exp() * goes_on[:, -1])[..., None, None]
    return result, kept * state + torch.einsum("bjhp,bjhn->bhpn", values, taken)


def mamba_split_conv1d_scan_combined(
    zxbcdt: torch.Tensor,
    conv1d_weight: torch.Tensor,
    conv1d_bias: torch.Tensor | None,
    dt_bias: torch.Tensor,
    A: torch.Tensor,
    D: torch.Tensor,
    chunk_size: int,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    dt_limit: tuple[float, float] = _NO_LIMIT,
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: torch.Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: torch.Tensor | None = None,
    outproj_bias: torch.Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """All of a Mamba 2 layer but its projections, which it has where their weights are given.

    Args:
        zxbcdt: [batch, tokens, gate, values, inputs and outputs of the state, time steps].
        D: [heads] with headdim, or [heads, channels].
        rmsnorm_weight: a norm with the gate before or after it; without one the gate alone.
    """
    heads, channels = (len(D), headdim) if headdim is not None else D.shape
    inner = heads * channels
    states = (conv1d_weight.shape[0] - inner) // 2
    z, convolved, dt = zxbcdt.split([inner, inner + 2 * states, heads], dim=-1)
    mixed: Any = causal_conv1d_fn(
        convolved.transpose(1, 2), conv1d_weight, conv1d_bias, seq_idx=seq_idx, activation=activation
    )
    convolved = mixed.transpose(1, 2)
    x, B, C = convolved.split([inner, states, states], dim=-1)
    gate = z.unflatten(-1, (heads, channels)) if rmsnorm_weight is None else None
    out, state = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, channels)),
        dt,
        A,
        B.unflatten(-1, (ngroups, -1)),
        C.unflatten(-1, (ngroups, -1)),
        chunk_size,
        D,
        gate,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    out = out.flatten(-2)
    if rmsnorm_weight is not None:
        out = rms_norm(out, rmsnorm_weight, z, rmsnorm_eps, inner // ngroups, norm_before_gate)
    if outproj_weight is not None:
        out = F.linear(out, outproj_weight, outproj_bias)
    return (out, state) if return_final_states else out

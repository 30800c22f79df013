"""The gated delta rule: each head's state [key, value] fades, and takes in what it does not know of a token yet,

    S_t = exp(g_t) S_(t-1) + k_t u_t^T,    u_t = beta_t (v_t - exp(g_t) S_(t-1)^T k_t),    o_t = S_t^T q_t,

computed a chunk of tokens at a time: the u of a chunk depend on one another by a triangular matrix.
"""

from itertools import pairwise
from typing import Any

import torch

from fla.modules.l2norm import l2norm

_CHUNK = 64


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(results [batch, tokens, heads, value], states after the last tokens), in fp32, the results in the type of q.

    Args:
        q, k: [batch, tokens, heads, key]. v: [batch, tokens, heads, value].
        g: [batch, tokens, heads], logarithm of what is left of a state. beta: the same shape.
        scale: of the queries; 1 / sqrt(key) if None.
        initial_state: [sequences, heads, key, value]; zeros if None.
        cu_seqlens: where the sequences of the one row begin and end; no state passes from one to another.
    """
    if use_qk_l2norm_in_kernel:
        q, k = l2norm(q), l2norm(k)
    scaled = q * (k.shape[-1] ** -0.5 if scale is None else scale)
    wide = [part.float().transpose(1, 2) for part in (scaled, k, v, g, beta)]  # [batch, heads, tokens, ...]
    if cu_seqlens is None:
        rows = [wide]
    elif len(q) == 1:
        rows = [[part[:, :, start:end] for part in wide] for start, end in pairwise(cu_seqlens.tolist())]
    else:
        raise ValueError(f"cu_seqlens is of one row, and there are {len(q)}")
    states: Any = [None] * len(rows) if initial_state is None else initial_state.float().chunk(len(rows))
    done = [_sequence(*row, state=state) for row, state in zip(rows, states, strict=True)]
    out = torch.cat([one for one, _ in done], dim=2).transpose(1, 2).to(q.dtype)
    return out, torch.cat([state for _, state in done]) if output_final_state else None


def _sequence(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if state is None:
        state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    results = []
    for start in range(0, k.shape[2], _CHUNK):
        part = slice(start, start + _CHUNK)
        here = [one[:, :, part] for one in (q, k, v, g, beta)]
        result, state = _chunk(here[0], here[1], here[2], here[3], here[4], state)
        results.append(result)
    return torch.cat(results, dim=2) if results else v, state


def _chunk(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    fade = g.cumsum(-1)  # since before the first token
    seen = torch.ones(fade.shape[-1], fade.shape[-1], dtype=torch.bool).tril()
    left = (fade[..., None] - fade[..., None, :]).masked_fill(~seen, float("-inf")).exp()  # [to, from]
    since = fade.exp()[..., None]
    known = (k @ k.mT * left).tril(-1) * beta[..., None]  # of a token, by those before it
    news = beta[..., None] * (v - since * (k @ state))
    news = torch.linalg.solve_triangular(torch.eye(len(seen)) + known, news, upper=False, unitriangular=True)
    result = since * (q @ state) + (q @ k.mT * left) @ news
    return result, since[..., -1:, :] * state + (left[..., -1, :, None] * k).mT @ news

"""DotProductAttention over torch's scaled_dot_product_attention.

Tokens of a micro-batch are `sbhd` [sequence, batch, heads, channels] or packed `thd` [tokens, heads, channels]. With
context parallel each rank gathers the keys and values of its group and attends with its own queries, whatever
cp_comm_type says: the result is the same, only the traffic differs.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from transformer_engine.pytorch.attention.context_parallel import gather_tokens, positions_of_rank
from transformer_engine.pytorch.module import TransformerEngineModule, refuse

_NOT_HERE = "not computed by the CPU backend; leave it off"


class DotProductAttention(TransformerEngineModule):
    """softmax(scale Q K^T + mask) V.

    Args:
        kv_channels: channels of a head, or (of keys, of values).
        num_gqa_groups: key-value heads before tensor parallel division; default: as many as heads.
        window_size: (left, right) reach of a query; -1 is without end. Causal masks imply right = 0.
        softcap: scores become softcap x tanh(scores / softcap); 0 is off.
        softmax_type: "vanilla", "off-by-one" (a zero joins the sum), "learnable" (softmax_offset joins it).
        cp_group: context parallel group.
    """

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0,
        qkv_format: str = "sbhd",
        attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None,
        softcap: float = 0.0,
        sequence_parallel: bool = False,
        tp_size: int = 1,
        get_rng_state_tracker: Callable[[], Any] | None = None,
        tp_group: Any = None,
        layer_number: int | None = None,
        attention_type: str = "self",
        cp_group: Any = None,
        cp_global_ranks: list[int] | None = None,
        cp_stream: Any = None,
        cp_comm_type: str = "p2p",
        softmax_scale: float | None = None,
        softmax_type: str = "vanilla",
        return_max_logit: bool | None = False,
        **unused: Any,
    ):
        super().__init__()
        refuse(_NOT_HERE, return_max_logit=return_max_logit)
        channels = kv_channels if isinstance(kv_channels, int) else kv_channels[0]
        self.softmax_scale = channels**-0.5 if softmax_scale is None else softmax_scale
        self.attention_dropout = attention_dropout
        self.qkv_format = qkv_format
        self.attn_mask_type = attn_mask_type
        self.window_size = window_size
        self.softcap = softcap
        own_seed = None if sequence_parallel else get_rng_state_tracker
        self.dropout_seed = own_seed().fork if own_seed else nullcontext
        self.set_context_parallel_group(cp_group, cp_global_ranks, cp_stream, cp_comm_type)
        self.softmax_offset = None
        heads = num_attention_heads // tp_size
        if softmax_type == "off-by-one":
            self.softmax_offset = torch.zeros(heads)
        elif softmax_type == "learnable":
            self.softmax_offset = torch.nn.Parameter(torch.zeros(heads))

    def set_context_parallel_group(
        self, cp_group: Any, cp_global_ranks: Any, cp_stream: Any, cp_comm_type: str
    ) -> None:
        if isinstance(cp_group, list):
            raise RuntimeError("cp_comm_type a2a+p2p is for several GPU nodes; use p2p, a2a or all_gather here")
        self.cp_group = cp_group
        self.cp_comm_type = cp_comm_type
        self.cp_size = 1 if cp_group is None else dist.get_world_size(cp_group)
        self.cp_rank = 0 if cp_group is None else dist.get_rank(cp_group)

    def forward(
        self,
        query_layer: torch.Tensor,
        key_layer: torch.Tensor,
        value_layer: torch.Tensor,
        attention_mask: Any = None,
        qkv_format: str | None = None,
        cu_seqlens_q: torch.Tensor | None = None,
        cu_seqlens_kv: torch.Tensor | None = None,
        cu_seqlens_q_padded: torch.Tensor | None = None,
        cu_seqlens_kv_padded: torch.Tensor | None = None,
        max_seqlen_q: int | None = None,
        max_seqlen_kv: int | None = None,
        attn_mask_type: str | None = None,
        window_size: tuple[int, int] | None = None,
        softcap: float | None = None,
        core_attention_bias_type: str = "no_bias",
        core_attention_bias: torch.Tensor | None = None,
        alibi_slopes: Any = None,
        inference_params: Any = None,
        pad_between_seqs: bool | None = None,
        num_splits: int | None = None,
        **unused: Any,
    ) -> torch.Tensor:
        """Attend.

        Args:
            attention_mask: True where a score is left out, broadcastable to [b, heads, queries, keys]; read for mask
                types with "padding" or "arbitrary" in `sbhd`.
            cu_seqlens_q, cu_seqlens_kv: `thd`: running sums of sequence lengths over all context parallel ranks.
            cu_seqlens_q_padded, cu_seqlens_kv_padded: the same with the padding after each sequence.

        Returns:
            [sequence, batch, heads x channels], or [tokens, heads x channels] with zeros at padding.
        """
        refuse(_NOT_HERE, alibi_slopes=alibi_slopes is not None, inference_params=inference_params is not None)
        mask_type = attn_mask_type or self.attn_mask_type
        rule = _Rule(
            causal="causal" in mask_type,
            bottom_right="bottom_right" in mask_type,
            window=window_size or self.window_size,
            softcap=self.softcap if softcap is None else softcap,
        )
        if (qkv_format or self.qkv_format) == "thd":
            if core_attention_bias is not None:
                raise RuntimeError(f"core_attention_bias with packed sequences: {_NOT_HERE}")
            return self._packed(
                query_layer,
                key_layer,
                value_layer,
                rule,
                (cu_seqlens_q, cu_seqlens_kv),
                (cu_seqlens_q_padded, cu_seqlens_kv_padded),
            )
        if "padding" not in mask_type and "arbitrary" not in mask_type:
            attention_mask = None
        return self._unpacked(query_layer, key_layer, value_layer, rule, attention_mask, core_attention_bias)

    def _unpacked(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: "_Rule", left_out: Any, bias: Any
    ) -> torch.Tensor:
        if self.cp_size == 1:
            q_positions, k_positions = torch.arange(q.shape[0]), torch.arange(k.shape[0])
            if rule.bottom_right:
                q_positions = q_positions + (k.shape[0] - q.shape[0])
        else:
            if left_out is not None or bias is not None:
                raise RuntimeError(f"attention_mask or bias with context parallel: {_NOT_HERE}")
            whole = k.shape[0] * self.cp_size
            q_positions = positions_of_rank(whole, self.cp_size, self.cp_rank)
            k_positions = torch.cat([positions_of_rank(whole, self.cp_size, rank) for rank in range(self.cp_size)])
            k, v = (gather_tokens(x, self.cp_group).flatten(0, 1) for x in (k, v))
        mask = rule.mask(q_positions, k_positions)
        if left_out is not None:
            mask = ~left_out if mask is None else mask & ~left_out
        q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
        out = self._attend(q, k, v, rule, mask, bias)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _packed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: "_Rule", cu_seqlens: Any, padded: Any
    ) -> torch.Tensor:
        """One attention a sequence; k and v gain a leading dimension: the context parallel rank that holds them."""
        out = q.new_zeros((*q.shape[:-1], v.shape[-1]))
        k, v = (gather_tokens(x, self.cp_group) if self.cp_size > 1 else x[None] for x in (k, v))
        places = [_places(cu, cu_padded, self.cp_size) for cu, cu_padded in zip(cu_seqlens, padded, strict=True)]
        parts, rows = [], []
        for (q_at, q_length, q_slot), (k_at, k_length, k_slot) in zip(*places, strict=True):
            q_positions = positions_of_rank(q_slot, self.cp_size, self.cp_rank)
            k_positions = torch.stack([positions_of_rank(k_slot, self.cp_size, rank) for rank in range(self.cp_size)])
            own, real = q_positions < q_length, k_positions < k_length
            if not own.any():
                continue
            span = slice(k_at, k_at + k_slot // self.cp_size)
            mask = rule.mask(q_positions[own], k_positions[real])
            row = (q[q_at:][: len(own)][own], k[:, span][real], v[:, span][real])
            q_heads, k_heads, v_heads = (x.transpose(0, 1)[None] for x in row)
            parts.append(self._attend(q_heads, k_heads, v_heads, rule, mask, None)[0].transpose(0, 1))
            rows.append(q_at + own.nonzero()[:, 0])
        return (out.index_copy(0, torch.cat(rows), torch.cat(parts)) if parts else out).flatten(1)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: "_Rule", mask: Any, bias: Any
    ) -> torch.Tensor:
        """[b, h, sq, d], [b, g, sk, d], [b, g, sk, e] to [b, h, sq, e]; mask is True where a score counts, None is
        the plain causal mask or none at all."""
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        if self.softmax_offset is not None:
            k, v, bias = self._with_offset(q, k, v, rule, mask, bias)
            mask = None
        elif bias is not None:
            bias = _as_bias(q, k, rule, mask, bias)
        dropout = self.attention_dropout if self.training else 0.0
        with self.dropout_seed() if dropout else nullcontext():
            if rule.softcap:
                bias = _as_bias(q, k, rule, mask, 0.0) if bias is None else bias
                return _capped_attention(q, k, v, bias, dropout, self.softmax_scale, rule.softcap)
            given = mask if bias is None else bias
            return F.scaled_dot_product_attention(
                q, k, v, given, dropout, is_causal=given is None and rule.causal, scale=self.softmax_scale
            )

    def _with_offset(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rule: "_Rule", mask: Any, bias: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One more key of zeros with value zero, whose score is the offset: it takes part in the softmax's sum only."""
        bias = _as_bias(q, k, rule, mask, 0.0 if bias is None else bias)
        bias = bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        offset = self.softmax_offset.to(q.dtype)[None, :, None, None]  # type: ignore[union-attr]
        bias = torch.cat((bias, offset.expand(*bias.shape[:-1], 1)), dim=-1)
        return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), bias


class _Rule:
    """Which scores count, by position."""

    def __init__(self, causal: bool, bottom_right: bool, window: tuple[int, int] | None, softcap: float):
        left, right = window or (-1, -1)
        self.causal, self.bottom_right, self.softcap = causal, bottom_right, softcap
        self.left, self.right = left, 0 if causal else right

    def mask(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
        """[queries, keys], True where the score counts; None when scaled_dot_product_attention's own causal flag, or
        no mask at all, says the same.

        Args:
            q, k: positions of the queries and keys in their sequence.
        """
        if self.left < 0 and (
            self.right < 0 or (self.causal and torch.equal(q, k) and torch.equal(q, torch.arange(len(q))))
        ):
            return None
        distance = k[None, :] - q[:, None]
        counts = torch.ones_like(distance, dtype=torch.bool)
        if self.left >= 0:
            counts &= distance >= -self.left
        if self.right >= 0:
            counts &= distance <= self.right
        return counts


def _places(cu_seqlens: torch.Tensor, padded: torch.Tensor | None, cp_size: int) -> list[tuple[int, int, int]]:
    """(first local token, length, slot with padding) of each packed sequence; lengths are over all ranks."""
    real = cu_seqlens.tolist()
    slots = real if padded is None else padded.tolist()
    return [(slots[i] // cp_size, real[i + 1] - real[i], slots[i + 1] - slots[i]) for i in range(len(real) - 1)]


def _as_bias(q: torch.Tensor, k: torch.Tensor, rule: _Rule, mask: torch.Tensor | None, bias: Any) -> torch.Tensor:
    """A mask as numbers added to the scores."""
    if mask is None:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
        mask = mask.tril() if rule.causal else mask
    return torch.where(mask, bias, torch.tensor(float("-inf"))).to(q.dtype)


def _capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, dropout: float, scale: float, cap: float
) -> torch.Tensor:
    """torch has no attention with capped scores."""
    scores = cap * torch.tanh(q @ k.transpose(-1, -2) * scale / cap) + bias
    return F.dropout(torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype), dropout) @ v

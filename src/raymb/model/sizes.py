"""The sizes of a language model, of which its number of parameters is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Of a decoder-only language model. Lengths in tokens, sizes in elements; None where there is no such thing.

    num_kv_heads counts the key/value groups of grouped-query attention (equal to num_attention_heads without it).
    head_dim is that of queries and keys, value_head_dim that of values (0: the same).
    """

    architecture: str
    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int | None
    tie_word_embeddings: bool
    attention: str = "mha"
    """mha, gqa, mqa or mla."""
    value_head_dim: int = 0
    query_rank: int | None = None
    """Size of the compressed queries of multi-head latent attention."""
    num_experts: int | None = None
    experts_per_token: int | None = None
    moe_intermediate_size: int | None = None

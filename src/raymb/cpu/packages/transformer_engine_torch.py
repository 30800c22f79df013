"""The one function of Transformer Engine's extension module that Megatron-Core calls with packed sequences."""

import itertools

import torch

from transformer_engine.pytorch.attention.context_parallel import positions_of_rank


def thd_get_partitioned_indices(
    cu_seqlens: torch.Tensor, total_tokens: int, world_size: int, rank: int
) -> torch.Tensor:
    """Indices of a context parallel rank's tokens in the packed row of all.

    Args:
        cu_seqlens: where sequences begin, [sequences + 1]; each length a multiple of 2 x world_size.
    """
    starts = cu_seqlens.tolist()
    parts = [start + positions_of_rank(end - start, world_size, rank) for start, end in itertools.pairwise(starts)]
    return torch.cat(parts).to(torch.int32)

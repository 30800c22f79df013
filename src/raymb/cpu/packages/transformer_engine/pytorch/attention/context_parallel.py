"""Where a context parallel rank's tokens lie in their sequence.

Megatron cuts a sequence into 2 n equal chunks for n ranks and gives rank r the chunks r and 2 n - 1 - r, so that all
ranks have the same share of a causal mask.
"""

from typing import Any

import torch
import torch.distributed as dist

from transformer_engine.pytorch.distributed import gather_sequence


def positions_of_rank(length: int, size: int, rank: int) -> torch.Tensor:
    """Positions in a sequence of `length` that rank `rank` of `size` holds, in the order in which it holds them.

    Raises:
        RuntimeError: the length is no multiple of 2 x size.
    """
    if size == 1:
        return torch.arange(length)
    if length % (2 * size):
        raise RuntimeError(f"a sequence of {length} tokens does not divide into 2 x {size} context parallel chunks")
    chunk = length // (2 * size)
    first, second = rank * chunk, (2 * size - 1 - rank) * chunk
    return torch.cat((torch.arange(first, first + chunk), torch.arange(second, second + chunk)))


def gather_tokens(x: torch.Tensor, group: Any) -> torch.Tensor:
    """[tokens, ...] of each of n ranks to [n, tokens, ...] on all; gradients go back to their rank."""
    return gather_sequence(x, group).unflatten(0, (dist.get_world_size(group), x.shape[0]))

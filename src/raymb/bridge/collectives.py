"""Questions to all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist


def largest_of_all(value: float) -> float:
    """The largest value of any rank. Collective."""
    tensor = torch.tensor([value], dtype=torch.float64, device="cuda")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()


def some_rank(condition: bool) -> bool:
    """Whether it holds on any rank. Collective."""
    return largest_of_all(float(condition)) > 0

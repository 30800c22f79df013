"""Questions to all ranks."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from raymb.rank.progress import Progress

_waits = itertools.count()


def largest_of_all(value: float) -> float:
    """The largest value of any rank. Collective."""
    tensor = torch.tensor([value], dtype=torch.float64, device="cuda")
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()


def some_rank(condition: bool) -> bool:
    """Whether it holds on any rank. Collective."""
    return largest_of_all(float(condition)) > 0


def wait_for_first(progress: Progress) -> None:
    """Until rank 0 is here, too, however long that takes: it is watched itself. Collective, but none of the process
    group's, which have a time limit."""
    from torch.distributed.distributed_c10d import _get_default_store

    key = f"raymb/first/{next(_waits)}"
    if dist.get_world_size() == 1:
        return
    store: Any = _get_default_store()
    store = store.clone()  # a connection that waits serves nobody else
    if dist.get_rank() == 0:
        store.set(key, "here")
        return
    with progress.waiting():
        store.wait([key], timedelta(days=1))

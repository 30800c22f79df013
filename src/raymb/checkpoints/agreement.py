"""What one rank finds, or every rank, known to all of them: an error of one is raised on all, which else would wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from raymb.errors import RaymbError

_ERRORS = (OSError, ValueError, RaymbError)


def from_rank_0[Answer](find: Callable[[], Answer]) -> Answer:
    """What rank 0 finds: a shared file system may show others an older state. Collective."""
    box = [_tried(find) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return _results(box)[0]


def from_all_ranks[Answer](find: Callable[[], Answer]) -> list[Answer]:
    """What each rank finds, by rank. Collective."""
    boxes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(boxes, _tried(find))
    return _results(boxes)


def _tried(find: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return find(), None
    except _ERRORS as error:
        return None, error


def _results(boxes: list[Any]) -> list[Any]:
    for _, error in boxes:
        if error is not None:
            raise error
    return [result for result, _ in boxes]

"""Which checkpoint a start resumes from: the newest one that is whole to the last byte."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.errors import RaymbError, RunFailed
from raymb.telemetry.records import Emit


def where_to_resume(
    checkpoint_dir: str, resume: str, emit: Emit, remote: RemoteCheckpoints | None = None
) -> str | None:
    """The iteration directory to load; None to start from the Hugging Face weights. Collective: every rank reads its
    share of the files, so checking costs little more than loading, which finds them in memory then. One of the run's
    own that is damaged is set aside: it must neither be looked at again nor count as the newest.

    The run's own checkpoints come first, so that a restarted worker group never goes back to --resume PATH.

    Args:
        remote: where the run's own checkpoints are, if that is no file system.
    """
    for directory in _of_rank_0(partial(_candidates, checkpoint_dir, resume, remote)):
        own = Path(directory).is_relative_to(checkpoint_dir)
        if remote is not None and own:
            remote.fetch(directory)
        problem = _problem(directory)
        if not problem:
            return directory
        if dist.get_rank() == 0:
            emit({"kind": "warning", "text": f"{directory} is not whole and is left out: {problem}"})
            if own:
                (remote or checkpoint).reject(directory, problem)
    if resume not in ("auto", "never"):
        raise RunFailed(f"--resume {resume}: no checkpoint there can be used", "give another one, or auto")
    return None


def steps_left_out(checkpoint_dir: str, remote: RemoteCheckpoints | None = None) -> list[int]:
    """The steps whose batches are left out (--bad_loss rollback), the same for all ranks: ranks that leave out other
    steps wait for each other for ever. Collective."""

    def read() -> list[int]:
        if remote is not None:
            remote.bring(checkpoint_dir, checkpoint.LEFT_OUT)
        return checkpoint.left_out(checkpoint_dir)

    return _of_rank_0(read)


def _candidates(checkpoint_dir: str, resume: str, remote: RemoteCheckpoints | None) -> list[str]:
    here = checkpoint.candidates(checkpoint_dir, resume)
    if remote is None:
        return here
    return [*remote.candidates(checkpoint_dir), *(one for one in here if not Path(one).is_relative_to(checkpoint_dir))]


def _of_rank_0[Answer](find: Callable[[], Answer]) -> Answer:
    """What rank 0 finds, or its error, for all ranks: a shared file system may show others an old state. Collective."""
    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = find()
        except (OSError, ValueError, RaymbError) as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if box[1] is not None:
        raise box[1]
    return box[0]


def _problem(directory: str) -> str:
    if checkpoint.is_by_others(directory):
        return ""
    problem = checkpoint.why_not_whole(directory)
    if not problem:
        problem = checkpoint.wrong_content(directory, dist.get_rank(), dist.get_world_size())
    problems: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((found for found in problems if found), "")

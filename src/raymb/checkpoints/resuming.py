"""Which checkpoint a start resumes from: the newest one that is whole to the last byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.errors import RunFailed
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
    if remote is not None:
        remote.bring(checkpoint_dir, checkpoint.LEFT_OUT)
    there = remote.candidates(checkpoint_dir) if remote is not None and dist.get_rank() == 0 else []
    for directory in _agreed([*there, *_on_this_file_system(checkpoint_dir, resume, remote is None)]):
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


def _on_this_file_system(checkpoint_dir: str, resume: str, own: bool) -> list[str]:
    found = checkpoint.candidates(checkpoint_dir, resume)
    return found if own else [one for one in found if not Path(one).is_relative_to(checkpoint_dir)]


def _agreed(directories: list[str]) -> list[str]:
    """Rank 0's list: a shared file system may show others an older one."""
    box = [directories]
    dist.broadcast_object_list(box, src=0)
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

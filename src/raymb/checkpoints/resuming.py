"""Which checkpoint a start resumes from: the newest one that is whole to the last byte."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.agreement import from_all_ranks, from_rank_0
from raymb.checkpoints.fetching import fetch
from raymb.checkpoints.remote import RemoteCheckpoints, candidates
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
    # The run's own by their names: each machine of a run at a URI has a workspace of its own.
    for name in from_rank_0(lambda: _names(candidates(checkpoint_dir, resume, remote), checkpoint_dir)):
        directory = str(Path(checkpoint_dir, name))
        if _is_whole(directory, Path(directory).is_relative_to(checkpoint_dir), emit, remote):
            return directory
    if resume not in ("auto", "never"):
        raise RunFailed(f"--resume {resume}: no checkpoint there can be used", "give another one, or auto")
    return None


def check_whole(directory: str, own: bool, emit: Emit, remote: RemoteCheckpoints | None = None) -> None:
    """Have the checkpoint that the driver has chosen (to reshard it), and check it. Collective.

    Raises:
        RunFailed: it is damaged.
    """
    if not _is_whole(directory, own, emit, remote):
        raise RunFailed(f"{directory} is not whole", "the same command takes the checkpoint before")


def steps_left_out(checkpoint_dir: str, remote: RemoteCheckpoints | None = None) -> list[int]:
    """The steps whose batches are left out (--bad_loss rollback), the same for all ranks: ranks that leave out other
    steps wait for each other for ever. Collective."""

    def read() -> list[int]:
        if remote is not None:
            remote.bring(checkpoint_dir, checkpoint.LEFT_OUT)
        return checkpoint.left_out(checkpoint_dir)

    return from_rank_0(read)


def _names(directories: list[str], checkpoint_dir: str) -> list[str]:
    """Relative to the run's checkpoints, where they are among them."""
    paths = [Path(one).absolute() for one in directories]
    return [str(one.relative_to(checkpoint_dir) if one.is_relative_to(checkpoint_dir) else one) for one in paths]


def _is_whole(directory: str, own: bool, emit: Emit, remote: RemoteCheckpoints | None) -> bool:
    """Whether it is; if not, this is said, and the run's own is set aside."""
    problem = fetch(remote, directory) if remote is not None and own else _problem(directory)
    if problem and dist.get_rank() == 0:
        emit({"kind": "warning", "text": f"{directory} is not whole and is left out: {problem}"})
        if own:
            (remote or checkpoint).reject(directory, problem)
    return not problem


def _problem(directory: str) -> str:
    if checkpoint.is_by_others(directory):
        return ""
    share = dist.get_rank(), dist.get_world_size()
    problems = from_all_ranks(
        lambda: checkpoint.why_not_whole(directory) or checkpoint.wrong_content(directory, *share)
    )
    return next((problem for problem in problems if problem), "")

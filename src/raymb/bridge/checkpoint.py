"""Where Bridge's checkpoints lie and which one counts. No framework is imported: the driver reads them, too."""

from __future__ import annotations

import os
import re
from pathlib import Path

LATEST = "latest"
_ITERATION = re.compile(r"iter_(\d{7,})$")
_BACKEND = re.compile(r"^  distributed_backend: (\w+)$", re.MULTILINE)


def iteration_dir(checkpoint_dir: str | Path, step: int) -> str:
    return str(Path(checkpoint_dir) / f"iter_{step:07d}")


def point_latest_at(checkpoint_dir: str | Path, step: int) -> None:
    """Write the `latest` pointer, a text file with the iteration directory's name: it works on every file system,
    and moving it into place is atomic."""
    pointer = Path(checkpoint_dir) / LATEST
    temporary = pointer.with_name(f".{LATEST}.tmp")
    with open(temporary, "w", encoding="ascii") as file:
        file.write(Path(iteration_dir(checkpoint_dir, step)).name + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, pointer)


def latest_step(checkpoint_dir: str | Path) -> int | None:
    """The step of the newest whole checkpoint, None when there is none."""
    try:
        name = (Path(checkpoint_dir) / LATEST).read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    match = _ITERATION.fullmatch(name)
    if match is None or not (Path(checkpoint_dir) / name).is_dir():
        return None
    return int(match.group(1))


def where_to_resume(checkpoint_dir: str, resume: str) -> str | None:
    """The directory that Bridge should load from; None to start from the Hugging Face weights.

    The run's own newest checkpoint comes first, so that a restarted worker group never goes back to --resume PATH.
    """
    if latest_step(checkpoint_dir) is not None:
        return checkpoint_dir
    return None if resume in ("auto", "never") else resume


def written_with(load_dir: str | Path) -> str | None:
    """torch.distributed's back end in the run that wrote the newest checkpoint there, nccl or gloo; None if it does
    not say. CUDA's random state means nothing to a CPU, nor the other way round, and Bridge would stop at it."""
    files = sorted(Path(load_dir).glob("run_config.yaml")) or sorted(Path(load_dir).glob("iter_*/run_config.yaml"))
    match = _BACKEND.search(files[-1].read_text(encoding="utf-8")) if files else None
    return match.group(1) if match else None

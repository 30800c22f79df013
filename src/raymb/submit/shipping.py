"""What goes along with a job whose target takes files: a copy of --working_dir, and raymb as it is here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import raymb

CODE, SOURCE = "code", "src"
SHIPPED = (CODE, SOURCE)
"""In a job's directory: where it starts, and what goes onto PYTHONPATH."""
_NEVER = frozenset({"raymb-runs", "raymb-jobs", ".git", ".venv", "__pycache__"})


def shipped(directory: Path, without: Path, *, follow: bool) -> dict[str, Path]:
    """Name in the job's directory to the file that it is a copy of.

    Args:
        directory: --working_dir.
        without: the job's own directory, which may lie in it.
        follow: copy what is behind a link to a directory; else it stays a link.
    """
    package = Path(raymb.__file__).parent
    code = {f"{CODE}/{name}": directory / name for name in _code(directory, follow)}
    source = {f"{SOURCE}/raymb/{name}": package / name for name in _below(package, follow=True)}
    return {name: path for name, path in {**code, **source}.items() if not path.is_relative_to(without)}


def _code(directory: Path, follow: bool) -> Iterator[str]:
    """In a git repository what git would take; else everything but runs, jobs and environments."""
    listed = _known_to_git(directory)
    if listed is None:
        yield from _below(directory, follow)
        return
    for name in listed:
        path = directory / name
        if path.is_dir() and (follow or not path.is_symlink()):  # a link, or a repository within
            yield from (f"{name}/{below}" for below in _code(path, follow))
        elif path.exists() and _NEVER.isdisjoint(Path(name).parts):
            yield name


def _known_to_git(directory: Path) -> list[str] | None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    except OSError:  # no git
        return None
    return sorted({name.rstrip("/") for name in done.stdout.split("\0") if name}) if done.returncode == 0 else None


def _below(directory: Path, follow: bool) -> Iterator[str]:
    for place, directories, files in os.walk(directory, followlinks=follow):
        links = [] if follow else [name for name in directories if Path(place, name).is_symlink()]
        directories[:] = sorted(set(directories) - _NEVER - set(links))
        for name in sorted([*files, *links]):
            if (path := Path(place, name)).exists():
                yield path.relative_to(directory).as_posix()

"""A job's directory: what is written there, and that nothing of another job is lost."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from raymb.errors import SubmitError
from raymb.spec import sparse_yaml
from raymb.submit.shipping import SHIPPED
from raymb.submit.target import SPEC, Submission, Target


def write_job(job: Submission, target: Target) -> list[Path]:
    """Write the job's files and the spec.

    Returns:
        the files, and the directories that are copies.

    Raises:
        SubmitError: other files of these names are there, and --replace was not given; or they cannot be written.
    """
    contents = {SPEC: sparse_yaml(job.spec), **target.files(job)}
    files = {job.directory / name: content for name, content in contents.items()}
    other = [path for path, content in files.items() if path.exists() and not _is(path, content)]
    other += [path for path in _copied(job.directory) if path not in files]
    if other and not job.options.replace:
        raise SubmitError(
            f"{other[0]} is there with another content, from an earlier submission",
            "--replace writes over it; --output DIR or --job_name NAME takes another place",
        )
    try:
        for name in SHIPPED:
            shutil.rmtree(job.directory / name, ignore_errors=True)
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, content)
    except OSError as error:
        raise SubmitError(f"--output {job.directory}: cannot be written ({error.strerror or error})") from None
    copies = [job.directory / name for name in SHIPPED if (job.directory / name).is_dir()]
    return [*(path for path, content in files.items() if isinstance(content, str)), *copies]


def _is(path: Path, content: str | Path) -> bool:
    if isinstance(content, str):
        return path.is_file() and path.read_text(encoding="utf-8") == content
    if content.is_dir():
        return path.resolve() == content.resolve()
    return path.is_file() and filecmp.cmp(path, content, shallow=False)


def _write(path: Path, content: str | Path) -> None:
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif content.is_dir():  # a link to one
        path.symlink_to(content.resolve())
    else:
        shutil.copy2(content, path)


def _copied(directory: Path) -> list[Path]:
    """What lies in the copies of an earlier submission, but for what Python has compiled there."""
    found = [path for name in SHIPPED for path in sorted((directory / name).rglob("*"))]
    return [path for path in found if (path.is_symlink() or not path.is_dir()) and path.parent.name not in COMPILED]


COMPILED = ("__pycache__",)

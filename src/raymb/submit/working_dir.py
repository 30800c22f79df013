"""Targets whose client uploads a directory, which the job then starts in."""

from __future__ import annotations

import glob
import os
import subprocess
from pathlib import Path
from typing import ClassVar

from raymb.errors import SpecError
from raymb.spec import RunSpec
from raymb.submit.target import SPEC, Submission, Target

LEFT_OUT = ("raymb-runs",)
"""Of --working_dir, beside what git ignores."""


class Uploading(Target):
    """The job's own files are uploaded, or --working_dir, which holds them."""

    uploads: ClassVar[bool] = True

    def root(self, job: Submission) -> Path:
        """What is uploaded."""
        return job.working_dir or job.directory

    def spec_file(self, job: Submission) -> str:
        """The spec, from where the job starts."""
        return (job.directory / SPEC).relative_to(self.root(job)).as_posix()

    def keeps(self, path: str, spec: RunSpec) -> bool:
        """A relative path is one of the copy that the job starts in."""
        return Path(path).is_absolute() and self.sees(path, spec)

    def check(self, job: Submission) -> None:
        if not job.directory.is_relative_to(self.root(job)):
            raise SpecError(
                f"--output {job.directory}: the job's files must be in --working_dir {job.working_dir}, which is "
                "uploaded",
                f"--output {Path(str(job.working_dir), 'raymb-jobs', job.name)}",
            )
        if job.working_dir is not None and (line := ignored_by_git(job.directory)):
            raise SpecError(
                f"--output {job.directory}: the job's files must be uploaded with --working_dir, and {line} leaves "
                "them out",
                "take it out of there, or give another --output",
            )


def is_uploaded(path: str, spec: RunSpec) -> bool:
    """Whether a relative path, or a glob, is in the copy of --working_dir that a job starts in."""
    directory = spec.cluster.working_dir
    if directory is None or directory.expanduser().absolute() != Path.cwd():
        return False
    parts = Path(os.path.normpath(path)).parts
    inside = not Path(path).is_absolute() and not {"..", *LEFT_OUT} & set(parts[:1])
    return inside and bool(glob.glob(path, recursive=True) or Path(path).exists()) and not ignored_by_git(path)


def ignored_by_git(path: str | Path) -> str:
    """The line of a .gitignore that leaves a path out, as FILE:NUMBER:PATTERN; "" if none does. The clients of Ray,
    Anyscale and SkyPilot upload what git would."""
    try:
        done = subprocess.run(
            ["git", "check-ignore", "--verbose", "--no-index", str(path)], capture_output=True, text=True
        )
    except OSError:  # no git
        return ""
    return done.stdout.partition("\t")[0] if done.returncode == 0 else ""

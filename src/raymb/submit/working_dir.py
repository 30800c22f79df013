"""Targets whose client uploads a directory, which the job then starts in."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from raymb.errors import SpecError
from raymb.submit.target import SPEC, Submission, Target


class Uploading(Target):
    working_dir: Path | None = Field(default=None)
    """Directory to upload, which the job starts in: `.`, where relative paths of data are wanted. Default: the job's
    own files."""

    def root(self, job: Submission) -> Path:
        """What is uploaded."""
        return self.working_dir.expanduser().absolute() if self.working_dir else job.directory

    def spec_file(self, job: Submission) -> str:
        """The spec, from where the job starts."""
        return (job.directory / SPEC).relative_to(self.root(job)).as_posix()

    def is_uploaded(self, path: str) -> bool:
        here = self.working_dir is not None and self.working_dir.expanduser().absolute() == Path.cwd()
        return here and not Path(path).is_absolute() and Path(path).exists()

    def check(self, job: Submission) -> None:
        if not self.root(job).is_dir() and self.working_dir:
            raise SpecError(f"--working_dir {self.working_dir}: no such directory")
        if not job.directory.is_relative_to(self.root(job)):
            raise SpecError(
                f"--output {job.directory}: the job's files must be in --working_dir {self.working_dir}, which is "
                "uploaded",
                f"--output {Path(str(self.working_dir), 'raymb-jobs', job.name)}",
            )

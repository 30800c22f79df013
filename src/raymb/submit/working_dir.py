"""Targets whose client uploads a directory, which the job then starts in."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from raymb.errors import SpecError
from raymb.spec import RunSpec
from raymb.submit.target import SPEC, Submission, Target


class Uploading(Target):
    """The job's own files are uploaded, or --working_dir, which holds them."""

    uploads: ClassVar[bool] = True

    def root(self, job: Submission) -> Path:
        """What is uploaded."""
        return job.working_dir or job.directory

    def spec_file(self, job: Submission) -> str:
        """The spec, from where the job starts."""
        return (job.directory / SPEC).relative_to(self.root(job)).as_posix()

    def is_uploaded(self, path: str, spec: RunSpec) -> bool:
        directory = spec.cluster.working_dir
        here = directory is not None and directory.expanduser().absolute() == Path.cwd()
        return here and not Path(path).is_absolute() and Path(path).exists()

    def check(self, job: Submission) -> None:
        if not job.directory.is_relative_to(self.root(job)):
            raise SpecError(
                f"--output {job.directory}: the job's files must be in --working_dir {job.working_dir}, which is "
                "uploaded",
                f"--output {Path(str(job.working_dir), 'raymb-jobs', job.name)}",
            )

"""A job's directory: what is written there, and that nothing of another job is lost."""

from __future__ import annotations

from pathlib import Path

from raymb.errors import SubmitError
from raymb.spec import sparse_yaml
from raymb.submit.target import SPEC, Submission, Target


def write_job(job: Submission, target: Target) -> list[Path]:
    """Write the job's files and the spec.

    Raises:
        SubmitError: other files of these names are there, and --replace was not given; or they cannot be written.
    """
    contents = {SPEC: sparse_yaml(job.spec), **target.files(job)}
    files = {job.directory / name: text for name, text in contents.items()}
    other = [path for path, text in files.items() if path.exists() and path.read_text(encoding="utf-8") != text]
    if other and not job.options.replace:
        raise SubmitError(
            f"{other[0]} is there with another content, from an earlier submission",
            "--replace writes over it; --output DIR or --job_name NAME takes another place",
        )
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SubmitError(f"--output {job.directory}: cannot be written ({error.strerror or error})") from None
    return list(files)

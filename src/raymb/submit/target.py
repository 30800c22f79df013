"""What every target has in common: the job that it renders, and how it is rendered and handed over."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from raymb.errors import EXIT_OK, SubmitError
from raymb.spec.sections import RunSpec
from raymb.spec.values import Section, comma_words, written_as

SPEC = "spec.yaml"
"""The resolved spec in a job's directory."""

_Variable = Annotated[str, written_as(r"[A-Za-z_]\w*", "must be the name of a variable, without a value")]
Variables = Annotated[list[_Variable], BeforeValidator(comma_words)]
"""Names of environment variables, with commas between them or repeated."""


JobName = Annotated[
    str, written_as(r"[a-z]([a-z0-9-]{0,39}[a-z0-9])?", "must be at most 41 small letters, digits and '-'")
]
"""A RayJob's has at most 47 characters, of which each submission's own are 6."""


class JobOptions(Section):
    """What is asked of a job whatever its target; the section `Job` of --help."""

    job_name: JobName | None = None
    """Name of the job: small letters, digits and '-'. Default: made from --experiment_name, else from the model."""
    output: Path | None = None
    """Directory for the job's files. Default: raymb-jobs/JOB_NAME."""
    replace: bool = False
    """Write over other files that an earlier submission left in --output."""
    pass_env: Variables = Field(default=[])
    """Environment variables to pass on with the values they have here, such as HF_TOKEN,WANDB_API_KEY. No file gets
    the values."""
    python: str = "python"
    """Python that has raymb on the cluster."""


@dataclass(frozen=True)
class Submission:
    """A checked run, as the targets render it.

    Args:
        name: of the job; a DNS label.
        spec: what the job runs.
        workers: the largest number of workers.
        workers_per_node: the most of them on one node.
        gpus: whether a worker takes a GPU.
        working_dir: --working_dir, absolute, where the target uploads it; else None.
        directory: where the job's files are on this machine; absolute.
        options: of the job.
    """

    name: str
    spec: RunSpec
    workers: int
    workers_per_node: int
    gpus: bool
    working_dir: Path | None
    directory: Path
    options: JobOptions

    @property
    def nodes(self) -> int:
        return -(-self.workers // self.workers_per_node)

    @property
    def gpus_per_node(self) -> int:
        return self.workers_per_node if self.gpus else 0

    def command(self, spec_file: str) -> list[str]:
        """What trains, on a cluster where the spec is at this path."""
        return [self.options.python, "-m", "raymb", "finetune", "--config", spec_file]


class Target(Section):
    """A kind of cluster. The fields of a subclass are its flags.

    `client` is the program that hands a job over, `package` what to install for it, `uploads` whether the job starts in
    a copy of --working_dir.
    """

    client: ClassVar[str]
    package: ClassVar[str]
    uploads: ClassVar[bool] = False

    def starts_again(self) -> bool:
        return False

    def shares_files(self) -> bool:
        """Whether the job sees the files of this machine."""
        return False

    def sees(self, path: str, spec: RunSpec) -> bool:
        """Whether the job has this path of a file or directory, as it is written in the spec."""
        raise NotImplementedError

    def keeps(self, path: str, spec: RunSpec) -> bool:
        """Whether what the job writes at this path is there after it."""
        return self.sees(path, spec)

    def where(self) -> str:
        """What a user can do about a path that the job does not see, or does not keep."""
        raise NotImplementedError

    def way_of_secrets(self, names: list[str]) -> str:
        """How a job gets variables whose values no file of it may hold."""
        return f"export {names[0]} and give --pass_env {','.join(names)}"

    def check(self, job: Submission) -> None:
        """
        Raises:
            SpecError: the target's flags do not go with the job.
        """

    def as_the_job_reads_it(self, spec: RunSpec) -> RunSpec:
        """The spec where a copy of --working_dir is where the job starts: it need not be uploaded again."""
        return spec.changed(cluster={"working_dir": None}) if self.uploads else spec

    def files(self, job: Submission) -> Mapping[str, str | Path]:
        """The job's files beside the spec: name to content, or to the file or directory that it is a copy of."""
        raise NotImplementedError

    def commands(self, job: Submission) -> list[list[str]]:
        """The client's command lines, one after the other."""
        raise NotImplementedError

    def shown_command(self, job: Submission) -> str:
        """The same for a user to copy."""
        return " &&\n  ".join(shlex.join(words) for words in self.commands(job))

    def submit(self, job: Submission) -> int:
        """Hand the job over.

        Returns:
            the exit code.

        Raises:
            SubmitError: the client is not there, or refuses.
        """
        self.check_client()
        for words in self.commands(job):
            code = subprocess.run(words).returncode
            if code:
                raise SubmitError(f"{self.client} ended with exit code {code}: {shlex.join(words)}")
        return EXIT_OK

    def check_client(self) -> None:
        """
        Raises:
            SubmitError: the client is not there.
        """
        if shutil.which(self.client) is None:
            raise SubmitError(
                f"there is no {self.client} on PATH to submit with", f"{self.package}; or --dry_run and copy the files"
            )


def as_yaml(*documents: Any) -> str:
    """YAML documents in the order that they are given in, without empty values; a text of lines is a block literal."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(
        str, lambda dumper, text: dumper.represent_scalar(_TEXT, text, style="|" if "\n" in text else None)
    )
    kept = [_without_empty(document) for document in documents]
    return yaml.dump_all(kept, Dumper=Dumper, sort_keys=False, width=1000, default_flow_style=False)


_TEXT = "tag:yaml.org,2002:str"


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, "", [], {})}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value

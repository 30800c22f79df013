"""`raymb submit anyscale`: the YAML of an Anyscale job."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from raymb.errors import EXIT_OK, SpecError, SubmitError
from raymb.spec import RunSpec
from raymb.spec.values import Size, Words
from raymb.submit.target import Submission, as_yaml
from raymb.submit.working_dir import LEFT_OUT, Uploading, is_uploaded

FILE = "job.yaml"
STORAGE = ("/mnt/cluster_storage", "/mnt/user_storage", "/mnt/shared_storage")
"""What Anyscale mounts on every node: of the cluster, of the user, of the cloud."""


class Anyscale(Uploading):
    client: ClassVar[str] = "anyscale"
    package: ClassVar[str] = "pip install anyscale, in an environment of its own, and anyscale login"

    image: str
    """Image with raymb, built from the Containerfile on one of Anyscale's base images (docs/submit.md)."""
    registry_login_secret: str | None = None
    """Anyscale's secret for the image's registry."""
    instance_type: str | None = None
    """Instance type of the workers, such as p5.48xlarge; each holds --gpus_per_node workers."""
    head_instance_type: str | None = None
    """Instance type of the head; default: Anyscale's. It runs no workers."""
    market: Literal["on_demand", "spot", "prefer_spot"] = "on_demand"
    """What kind of instances."""
    min_nodes: int | None = Field(default=None, ge=0)
    """Worker nodes that are there from the start and stay; the others come when the run asks for them. Default: all
    that the run needs."""
    compute_config: str | None = None
    """Registered compute config, NAME:VERSION, instead of --instance_type."""
    cloud: str | None = None
    """Anyscale cloud; default: the organization's."""
    project: str | None = None
    """Anyscale project."""
    queue: str | None = None
    """Job queue to wait in."""
    tags: Words = Field(default=[])
    """Tag, NAME=VALUE. Repeatable."""
    retries: int = Field(default=3, ge=0)
    """New starts after a failed one; the run resumes from its newest checkpoint."""
    time_limit: Size | None = None
    """Seconds after which a start is ended; --max_time stops it with a checkpoint before."""

    def starts_again(self) -> bool:
        return self.retries > 0

    def sees(self, path: str, spec: RunSpec) -> bool:
        return any(Path(path).is_relative_to(place) for place in STORAGE) or is_uploaded(path, spec)

    def where(self) -> str:
        return f"a path below {', '.join(STORAGE)}, a URI (s3://...), or, to read, --working_dir . for what is here"

    def check(self, job: Submission) -> None:
        super().check(job)
        if (self.instance_type is None) == (self.compute_config is None):
            raise SpecError(
                "either --instance_type or --compute_config says what the job runs on",
                "--instance_type p5.48xlarge, or --compute_config NAME:VERSION of one that is registered",
            )
        if self.min_nodes is not None and self.compute_config is not None:
            raise SpecError(
                f"--min_nodes {self.min_nodes} and --compute_config {self.compute_config} both say how many nodes "
                "there are; drop one of them"
            )
        if (self.min_nodes or 0) > job.nodes:
            raise SpecError(f"--min_nodes {self.min_nodes} is more than the {job.nodes} nodes that the run needs")
        if wrong := [tag for tag in self.tags if "=" not in tag]:
            raise SpecError(f"--tags {wrong[0]}: NAME=VALUE is expected")

    def files(self, job: Submission) -> dict[str, str]:
        return {FILE: as_yaml(self._content(job))}

    def _content(self, job: Submission) -> dict[str, Any]:
        return {
            "name": job.name,
            "entrypoint": shlex.join(job.command(self.spec_file(job))),
            "working_dir": str(self.root(job)),
            "excludes": [*LEFT_OUT] if job.working_dir else [],
            "image_uri": self.image,
            "registry_login_secret": self.registry_login_secret,
            "compute_config": self.compute_config or self._compute(job),
            "cloud": self.cloud,
            "project": self.project,
            "max_retries": self.retries,
            "timeout_s": self.time_limit,
            "job_queue_config": {"target_job_queue_name": self.queue},
            "tags": dict(tag.split("=", 1) for tag in self.tags),
        }

    def _compute(self, job: Submission) -> dict[str, Any]:
        group = {
            "name": "workers",
            "instance_type": self.instance_type,
            "min_nodes": job.nodes if self.min_nodes is None else self.min_nodes,
            "max_nodes": job.nodes,
            "market_type": self.market.upper(),
        }
        # A head without CPUs and GPUs in Ray's eyes gets no workers.
        head = {"instance_type": self.head_instance_type, "resources": {"CPU": 0, "GPU": 0}}
        return {"head_node": head if self.head_instance_type else None, "worker_nodes": [group]}

    def commands(self, job: Submission) -> list[list[str]]:
        return [_command(str(job.directory / FILE))]

    def shown_command(self, job: Submission) -> str:
        line = super().shown_command(job)
        if not job.options.pass_env:
            return line
        names = ", ".join(job.options.pass_env)
        return f"this command without --dry_run; `{line}` would leave out {names}, for which it has command lines only"

    def submit(self, job: Submission) -> int:
        """The client takes values of variables from its command line, which all users of a machine can read, or from
        its file: one in memory, which only the client has."""
        self.check_client()
        content = {**self._content(job), "env_vars": {name: os.environ[name] for name in job.options.pass_env}}
        with os.fdopen(os.memfd_create(FILE), "w", encoding="utf-8") as file:
            file.write(as_yaml(content))
            file.flush()
            number = file.fileno()
            code = subprocess.run(_command(f"/proc/self/fd/{number}"), pass_fds=[number]).returncode
        if code:
            raise SubmitError(f"anyscale ended with exit code {code}: {super().shown_command(job)}")
        return EXIT_OK


def _command(file: str) -> list[str]:
    return ["anyscale", "job", "submit", "--config-file", file]

"""`raymb submit skypilot`: a task for SkyPilot, whose nodes start a Ray of the job's own."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from raymb.errors import SpecError
from raymb.spec import RunSpec
from raymb.spec.values import Size, Words
from raymb.storage.remote import is_uri
from raymb.submit.target import Submission, as_yaml
from raymb.submit.working_dir import Uploading, is_uploaded

FILE = "task.yaml"
_PORT = 6479
"""SkyPilot's own Ray has 6380, a user's 6379."""


class Skypilot(Uploading):
    client: ClassVar[str] = "sky"
    package: ClassVar[str] = (
        'pip install "skypilot[aws]" (or another cloud), in an environment of its own, and sky check'
    )

    image: str | None = None
    """Container image with raymb, built from the Containerfile; default: --setup installs it."""
    infra: str | None = None
    """Where to run: aws, gcp/us-central1, kubernetes, ...; default: the cheapest that is enabled."""
    accelerator: str | None = None
    """Kind of GPU in SkyPilot's words, such as H100; each node holds --gpus_per_node of them."""
    cpus_per_node: Size | None = None
    """At least so many CPUs on a node."""
    memory: Size | None = None
    """At least so many GiB of memory on a node."""
    disk_size: Size = 512
    """GiB of a node's disk."""
    spot: bool = False
    """Spot instances; a managed job is recovered when they are taken away."""
    file_mounts: Words = Field(default=[])
    """What the nodes see at a path: /PATH:s3://bucket or /PATH:LOCAL. Repeatable."""
    volumes: Words = Field(default=[])
    """SkyPilot volume at a path: /PATH:NAME. Repeatable."""
    setup: Words = Field(default=[])
    """Line of shell that prepares a node once. Repeatable."""
    managed: bool = True
    """A managed job (`sky jobs launch`), which is recovered; --no_managed: a cluster of its own (`sky launch`), which
    stays up."""

    def starts_again(self) -> bool:
        return self.managed

    def sees(self, path: str, spec: RunSpec) -> bool:
        mounted = [place.partition(":")[0] for place in (*self.file_mounts, *self.volumes)]
        return any(Path(path).is_relative_to(place) for place in mounted) or is_uploaded(path, spec)

    def keeps(self, path: str, spec: RunSpec) -> bool:
        """A file mount of a local directory is a copy of it."""
        stores = [place for place, source in _pairs(self.file_mounts).items() if is_uri(source)]
        return any(Path(path).is_relative_to(place) for place in (*stores, *_pairs(self.volumes)))

    def where(self) -> str:
        return (
            "--file_mounts /PATH:s3://bucket or --volumes /PATH:NAME; a URI (s3://...); to read, --working_dir . for "
            "what is here"
        )

    def check(self, job: Submission) -> None:
        super().check(job)
        if job.gpus and self.accelerator is None:
            raise SpecError("--accelerator is needed", "--accelerator H100, or --backend cpu")
        if wrong := [place for place in (*self.file_mounts, *self.volumes) if not place.startswith("/")]:
            raise SpecError(f"--file_mounts {wrong[0]}: /PATH:SOURCE is expected")

    def files(self, job: Submission) -> dict[str, str]:
        accelerators = f"{self.accelerator}:{job.gpus_per_node}" if job.gpus else None
        resources = {
            "infra": self.infra,
            "accelerators": accelerators,
            "cpus": f"{self.cpus_per_node}+" if self.cpus_per_node else None,
            "memory": f"{self.memory}+" if self.memory else None,
            "disk_size": self.disk_size,
            "use_spot": self.spot,
            "image_id": f"docker:{self.image}" if self.image else None,
        }
        task = {
            "name": job.name,
            "num_nodes": job.nodes,
            "resources": resources,
            "workdir": str(self.root(job)),
            "file_mounts": _pairs(self.file_mounts),
            "volumes": _pairs(self.volumes),
            "setup": "\n".join(self.setup),
            "run": self._run(job),
        }
        return {FILE: as_yaml(task)}

    def _run(self, job: Submission) -> str:
        command = shlex.join(job.command(self.spec_file(job)))
        python = shlex.quote(job.options.python)
        head = f'"$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{_PORT}"'
        return (
            f'{python} -m raymb.submit.node --rank "$SKYPILOT_NODE_RANK" --head {head} '
            f'--ray=--num-gpus="${{SKYPILOT_NUM_GPUS_PER_NODE:-0}}" -- \\\n  {command}\n'
        )

    def commands(self, job: Submission) -> list[list[str]]:
        """`--secret NAME` takes the value from the environment."""
        start = ["jobs", "launch"] if self.managed else ["launch", "--cluster", job.name]
        secrets = [word for name in job.options.pass_env for word in ("--secret", name)]
        return [["sky", *start, "--yes", *secrets, str(job.directory / FILE)]]


def _pairs(mounts: list[str]) -> dict[str, Any]:
    return {place: source for place, _, source in (mount.partition(":") for mount in mounts)}

"""`raymb submit ray`: a job of a Ray cluster that runs, by its job server."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from raymb.credentials import secret
from raymb.errors import EXIT_OK, SpecError, SubmitError, last_line
from raymb.spec import RunSpec
from raymb.submit.job_output import JobOutput
from raymb.submit.target import Submission
from raymb.submit.working_dir import LEFT_OUT, Uploading, is_uploaded

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


class Ray(Uploading):
    client: ClassVar[str] = "ray"

    address: str | None = None
    """Job server of the cluster, http://HOST:8265; default: the RAY_API_SERVER_ADDRESS variable, else that of the
    cluster that finetune would join (RAY_ADDRESS, this machine's). A cluster with a token takes it from RAY_AUTH_TOKEN
    or ~/.ray/auth_token."""
    follow: bool = False
    """Print the job's output until it ends, and end with its exit code."""

    def sees(self, path: str, spec: RunSpec) -> bool:
        return Path(path).is_absolute() or is_uploaded(path, spec)

    def where(self) -> str:
        return (
            "absolute paths are taken as the cluster's own, which every node sees; what the run writes needs one, or a "
            "URI (s3://...); --working_dir . uploads what is here, but not what git ignores"
        )

    def way_of_secrets(self, names: list[str]) -> str:
        return (
            f"start Ray on the nodes with {', '.join(names)}; or pass on where a file with the secret is that the "
            "nodes see: HF_TOKEN_PATH, AWS_SHARED_CREDENTIALS_FILE, GOOGLE_APPLICATION_CREDENTIALS"
        )

    def check(self, job: Submission) -> None:
        super().check(job)
        if seen := list(secret({name: os.environ[name] for name in job.options.pass_env})):
            raise SpecError(
                f"--pass_env {','.join(seen)}: not known to be harmless, and Ray writes the variables of a job into "
                "its logs and its list of jobs, where everybody on the cluster reads them",
                self.way_of_secrets(seen),
            )

    def files(self, job: Submission) -> dict[str, str]:
        return {}

    def commands(self, job: Submission) -> list[list[str]]:
        address = ["--address", self.address] if self.address else []
        wait = [] if self.follow else ["--no-wait"]
        values = {name: f"${name}" for name in job.options.pass_env}
        environment = self._runtime_env(job, values)
        directory = ["--working-dir", environment.pop("working_dir")]
        more = ["--runtime-env-json", json.dumps(environment)] if environment else []
        run = job.command(self.spec_file(job))
        return [["ray", "job", "submit", *address, *directory, *wait, *more, "--", *run]]

    def _runtime_env(self, job: Submission, values: dict[str, str]) -> dict[str, Any]:
        """The runs that lie in an uploaded directory are not uploaded."""
        environment: dict[str, Any] = {"working_dir": str(self.root(job))}
        if values:
            environment["env_vars"] = values
        return {**environment, "excludes": [*LEFT_OUT]} if job.working_dir else environment

    def shown_command(self, job: Submission) -> str:
        """The values of variables are the shell's to fill in."""
        line, names = super().shown_command(job), "|".join(job.options.pass_env)
        return re.sub(rf"\$({names})\b", r"""'"$\1"'""", line) if names else line

    def submit(self, job: Submission) -> int:
        """By Ray's own client, so that no value of a variable stands in a command line."""
        client = _client(self.address)
        values = {name: os.environ[name] for name in job.options.pass_env}
        try:
            identity = client.submit_job(
                entrypoint=shlex.join(job.command(self.spec_file(job))),
                runtime_env=self._runtime_env(job, values),
                metadata={"name": job.name},
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise SubmitError(f"the job server refuses the job: {last_line(error)}") from None
        print(f"submitted: {identity}")
        to = f" --address {self.address}" if self.address else ""
        if not self.follow:
            print(f"  ray job logs{to} --follow {identity}\n  ray job stop{to} {identity}")
            return EXIT_OK
        try:
            return JobOutput(client, identity).follow()
        except KeyboardInterrupt:
            print(f"\nthe job goes on; ray job stop{to} {identity} ends it", file=sys.stderr)
            raise


def _client(address: str | None) -> JobSubmissionClient:
    from raymb.driver.ray_address import check_reachable, find_ray, show_token

    asked = address or os.environ.get("RAY_API_SERVER_ADDRESS") or find_ray(None).address
    if not asked:
        raise SubmitError(
            "no job server is named, and no Ray cluster runs on this machine",
            "--address http://HOST:8265, or the RAY_API_SERVER_ADDRESS variable",
        )
    if asked != "auto":
        check_reachable(asked.partition("://")[2].partition("/")[0] if "://" in asked else asked)
    show_token(asked)
    import ray
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(asked)
    except (ImportError, RuntimeError, ConnectionError, ValueError, RayError) as error:
        hint = f'pip install "ray[default]=={ray.__version__}" here' if "ray[default]" in str(error) else _HINT
        raise SubmitError(f"no job server answers at {asked}: {' '.join(str(error).split())[:300]}", hint) from None


_HINT = (
    "--address takes the dashboard's address, http://HOST:8265; the head needs ray[default]; a token comes from "
    "RAY_AUTH_TOKEN or ~/.ray/auth_token (ray get-auth-token on the head)"
)

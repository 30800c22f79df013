"""`raymb submit sagemaker`: a training job of Amazon SageMaker; raymb.submit.sagemaker_host is its container's side."""

from __future__ import annotations

import json
import os
import shlex
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raymb.errors import SpecError, SubmitError, last_line
from raymb.spec import RunSpec, differing_sections
from raymb.spec.values import Size, Words, written_as
from raymb.submit.shipping import CODE, SHIPPED, SOURCE, shipped
from raymb.submit.target import Submission, Target
from raymb.submit.working_dir import is_uploaded

REQUEST = "training-job.json"
INPUT = "/opt/ml/input/data"
CHECKPOINTS = "/opt/ml/checkpoints"
START, ARCHIVE = "start.sh", "source.tar.gz"
_SOURCE = "code"
"""The channel of --working_dir; SageMaker's SDK names that of its source_dir so."""
_MODULE = ("-m", "raymb.submit.sagemaker_host")
_START = """#!/bin/bash
# What SageMaker starts on each instance: the run begins in a copy of --working_dir, with raymb as it was there.
set -eu
place=$(mktemp -d)
tar -xzf "$(dirname "$0")/{archive}" -C "$place"
export PYTHONPATH="$place/{source}${{PYTHONPATH:+:$PYTHONPATH}}"
cd "$place/{code}"
exec {python} -m raymb.submit.sagemaker_host
"""
_LONGEST_HYPERPARAMETER = 2500
Bucket = Annotated[str, written_as(r"s3://[^/]+(/.*)?", "must be s3://bucket/prefix")]
Channel = Annotated[str, written_as(r"[A-Za-z0-9.\-_]+=s3://.+", "must be NAME=s3://bucket/prefix")]
Role = Annotated[str, written_as(r"arn:aws[a-z\-]*:iam::\d{12}:role/.+", "must be arn:aws:iam::ACCOUNT:role/NAME")]


class Sagemaker(Target):
    client: ClassVar[str] = "aws"
    uploads: ClassVar[bool] = True
    package: ClassVar[str] = "pip install awscli"

    image: str
    """Image in a registry that SageMaker reads (ECR), built from the Containerfile."""
    role: Role
    """ARN of the role that the job has."""
    instance_type: str
    """Such as ml.p5.48xlarge; each instance holds --gpus_per_node workers."""
    output_s3: Bucket
    """Where SageMaker puts the exported model (model.tar.gz)."""
    channels: list[Channel] = Field(default=[])
    """Data that SageMaker brings to /opt/ml/input/data/NAME, NAME=s3://...; train (or training), validation and test
    are the data sets where no flag says otherwise. Repeatable."""
    checkpoint_s3: Bucket | None = None
    """Keeps /opt/ml/checkpoints there, for --storage_path /opt/ml/checkpoints on one instance; for several use a
    URI as --storage_path."""
    region: str | None = None
    """AWS region; default: the one that is configured."""
    time_limit: Size = 86400
    """Seconds after which SageMaker ends the job."""
    spot: bool = False
    """Managed spot training, within --time_limit twice as long."""
    volume_size: Size = 500
    """GB of an instance's disk; instances with disks of their own ignore it."""
    subnets: Words = Field(default=[])
    """Subnet of the job. Repeatable."""
    security_groups: Words = Field(default=[])
    """Security group of the job; with several instances it must allow all traffic within itself. Repeatable."""
    retries: int = Field(default=3, ge=0, le=30)
    """New starts after an error of SageMaker."""

    def starts_again(self) -> bool:
        return self.retries > 0 or self.spot

    def sees(self, path: str, spec: RunSpec) -> bool:
        names = [f"{INPUT}/{channel.partition('=')[0]}" for channel in self.channels]
        kept = [CHECKPOINTS] if self.checkpoint_s3 else []
        return any(Path(path).is_relative_to(place) for place in (*names, *kept)) or is_uploaded(path, spec)

    def keeps(self, path: str, spec: RunSpec) -> bool:
        """A channel is a copy of what is in S3."""
        return self.checkpoint_s3 is not None and Path(path).is_relative_to(CHECKPOINTS)

    def where(self) -> str:
        return (
            f"a URI (s3://...); a channel (--channels NAME=s3://..., {INPUT}/NAME); "
            f"--checkpoint_s3 for --storage_path {CHECKPOINTS}; to read, --working_dir . for what is here"
        )

    def check(self, job: Submission) -> None:
        if job.nodes > 1 and job.spec.run.storage_path.startswith(CHECKPOINTS):
            raise SpecError(
                f"--storage_path {job.spec.run.storage_path} is another directory on each of {job.nodes} instances",
                "--storage_path s3://bucket/prefix",
            )
        if job.working_dir is not None and any(channel.startswith(f"{_SOURCE}=") for channel in self.channels):
            raise SpecError(f"--channels {_SOURCE}=...: this channel brings --working_dir", "give it another name")
        if bool(self.subnets) != bool(self.security_groups):
            raise SpecError("--subnets and --security_groups go together", "give both, or neither")
        for name, text in self._hyperparameters(job).items():
            if len(text) > _LONGEST_HYPERPARAMETER:
                raise SpecError(
                    f"section {name} has {len(text)} characters as JSON; SageMaker takes {_LONGEST_HYPERPARAMETER}",
                    "put templates and lists of data sets into a channel",
                )

    def files(self, job: Submission) -> Mapping[str, str | Path]:
        request = {REQUEST: json.dumps(self._request(job, job.name), indent=2) + "\n"}
        if job.working_dir is None:
            return request
        start = _START.format(python=shlex.quote(job.options.python), archive=ARCHIVE, code=CODE, source=SOURCE)
        return {**request, START: start, **shipped(job.working_dir, job.directory, follow=True)}

    def _hyperparameters(self, job: Submission) -> dict[str, str]:
        """What differs from the defaults, a section each."""
        sections = differing_sections(job.spec)
        # SageMaker's name of the job is another one at each submission, and the run must find its checkpoints again.
        sections.setdefault("run", {}).setdefault("experiment_name", job.name)
        return {name: json.dumps(section) for name, section in sections.items()}

    def _source(self, name: str) -> str:
        """Where the code of a job of this name is, a prefix of whole names."""
        return f"{self.output_s3.rstrip('/')}/{name}/source/"

    def _request(self, job: Submission, name: str) -> dict[str, Any]:
        """Of CreateTrainingJob, with --working_dir in a channel."""
        channels, command = [_channel(channel) for channel in self.channels], [job.options.python, *_MODULE]
        if job.working_dir is not None:
            channels.append(_channel(f"{_SOURCE}={self._source(name)}"))
            command = ["bash", f"{INPUT}/{_SOURCE}/{START}"]
        stopping = {"MaxRuntimeInSeconds": self.time_limit}
        waiting = {"MaxWaitTimeInSeconds": 2 * self.time_limit} if self.spot else {}
        request: dict[str, Any] = {
            "TrainingJobName": name,
            "RoleArn": self.role,
            "AlgorithmSpecification": {
                "TrainingImage": self.image,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": command,
            },
            "HyperParameters": self._hyperparameters(job),
            "InputDataConfig": channels,
            "OutputDataConfig": {"S3OutputPath": self.output_s3},
            "ResourceConfig": {
                "InstanceType": self.instance_type,
                "InstanceCount": job.nodes,
                "VolumeSizeInGB": self.volume_size,
            },
            "StoppingCondition": {**stopping, **waiting},
            "RetryStrategy": {"MaximumRetryAttempts": self.retries} if self.retries else None,
            "EnableManagedSpotTraining": self.spot,
            "CheckpointConfig": {"S3Uri": self.checkpoint_s3} if self.checkpoint_s3 else None,
            "VpcConfig": {"Subnets": self.subnets, "SecurityGroupIds": self.security_groups} if self.subnets else None,
        }
        return {name: value for name, value in request.items() if value not in (None, [])}

    def commands(self, job: Submission) -> list[list[str]]:
        region = ["--region", self.region] if self.region else []
        create = ["aws", "sagemaker", "create-training-job", *region, "--cli-input-json"]
        create.append(f"file://{job.directory / REQUEST}")
        if job.working_dir is None:
            return [create]
        archive, place = str(job.directory / ARCHIVE), self._source(job.name)
        pack = ["tar", "-C", str(job.directory), "-czf", archive, *SHIPPED]
        files = [archive, str(job.directory / START)]
        return [pack, *(["aws", "s3", "cp", file, place] for file in files), create]

    def shown_command(self, job: Submission) -> str:
        environment = ",".join(f'{name}="${name}"' for name in job.options.pass_env)
        return super().shown_command(job) + (f" --environment {environment}" if environment else "")

    def submit(self, job: Submission) -> int:
        """By botocore, which raymb has, so that no value of a variable stands in a command line. SageMaker's own names
        of jobs are never used twice, so each submission gets the time appended to its name."""
        from datetime import UTC, datetime

        import botocore.session
        from botocore.exceptions import BotoCoreError, ClientError

        name = f"{job.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        environment = {variable: os.environ[variable] for variable in job.options.pass_env}
        session = botocore.session.get_session()
        try:
            if job.working_dir is not None:
                _upload(session.create_client("s3", region_name=self.region), job.directory, self._source(name))
            client = session.create_client("sagemaker", region_name=self.region)
            answer = client.create_training_job(**self._request(job, name), Environment=environment)
        except (BotoCoreError, ClientError, ValueError) as error:
            raise SubmitError(
                f"SageMaker does not take the job: {last_line(error)}", "AWS_PROFILE or AWS_ACCESS_KEY_ID, --region"
            ) from None
        print(f"submitted: {answer['TrainingJobArn']}")
        return 0


def _upload(client: Any, directory: Path, to: str) -> None:
    """The code of a job's directory, as the job unpacks it."""
    bucket, _, prefix = to.removeprefix("s3://").partition("/")
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name in SHIPPED:
                archive.add(directory / name, arcname=name)
        file.seek(0)
        client.put_object(Bucket=bucket, Key=f"{prefix}{ARCHIVE}", Body=file)
    client.put_object(Bucket=bucket, Key=f"{prefix}{START}", Body=(directory / START).read_bytes())


def _channel(channel: str) -> dict[str, Any]:
    name, _, uri = channel.partition("=")
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}

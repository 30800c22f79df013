"""`raymb submit sagemaker`: a training job of Amazon SageMaker; raymb.submit.sagemaker_host is its container's side."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raymb.errors import SpecError, SubmitError, last_line
from raymb.spec import RunSpec, differing_sections
from raymb.spec.values import Size, Words, written_as
from raymb.submit.target import Submission, Target

REQUEST = "training-job.json"
INPUT = "/opt/ml/input/data"
CHECKPOINTS = "/opt/ml/checkpoints"
_LONGEST_HYPERPARAMETER = 2500
Bucket = Annotated[str, written_as(r"s3://[^/]+(/.*)?", "must be s3://bucket/prefix")]
Channel = Annotated[str, written_as(r"[A-Za-z0-9.\-_]+=s3://.+", "must be NAME=s3://bucket/prefix")]
Role = Annotated[str, written_as(r"arn:aws[a-z\-]*:iam::\d{12}:role/.+", "must be arn:aws:iam::ACCOUNT:role/NAME")]


class Sagemaker(Target):
    client: ClassVar[str] = "aws"
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
    """Data that SageMaker brings to /opt/ml/input/data/NAME, NAME=s3://...; train, validation and test are the data
    sets where no flag says otherwise. Repeatable."""
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
        return any(Path(path).is_relative_to(place) for place in (*names, *kept))

    def keeps(self, path: str, spec: RunSpec) -> bool:
        """A channel is a copy of what is in S3."""
        return self.checkpoint_s3 is not None and Path(path).is_relative_to(CHECKPOINTS)

    def where(self) -> str:
        return (
            f"a URI (s3://...); a channel (--channels NAME=s3://..., {INPUT}/NAME); "
            f"--checkpoint_s3 for --storage_path {CHECKPOINTS}"
        )

    def check(self, job: Submission) -> None:
        if job.nodes > 1 and job.spec.run.storage_path.startswith(CHECKPOINTS):
            raise SpecError(
                f"--storage_path {job.spec.run.storage_path} is another directory on each of {job.nodes} instances",
                "--storage_path s3://bucket/prefix",
            )
        if bool(self.subnets) != bool(self.security_groups):
            raise SpecError("--subnets and --security_groups go together", "give both, or neither")
        for name, text in self._hyperparameters(job).items():
            if len(text) > _LONGEST_HYPERPARAMETER:
                raise SpecError(
                    f"section {name} has {len(text)} characters as JSON; SageMaker takes {_LONGEST_HYPERPARAMETER}",
                    "put templates and lists of data sets into a channel",
                )

    def files(self, job: Submission) -> dict[str, str]:
        return {REQUEST: json.dumps(self._request(job), indent=2) + "\n"}

    def _hyperparameters(self, job: Submission) -> dict[str, str]:
        """What differs from the defaults, a section each."""
        sections = differing_sections(job.spec)
        # SageMaker's name of the job is another one at each submission, and the run must find its checkpoints again.
        sections.setdefault("run", {}).setdefault("experiment_name", job.name)
        return {name: json.dumps(section) for name, section in sections.items()}

    def _request(self, job: Submission) -> dict[str, Any]:
        """Of CreateTrainingJob."""
        module = [job.options.python, "-m", "raymb.submit.sagemaker_host"]
        stopping = {"MaxRuntimeInSeconds": self.time_limit}
        waiting = {"MaxWaitTimeInSeconds": 2 * self.time_limit} if self.spot else {}
        request: dict[str, Any] = {
            "TrainingJobName": job.name,
            "RoleArn": self.role,
            "AlgorithmSpecification": {
                "TrainingImage": self.image,
                "TrainingInputMode": "File",
                "ContainerEntrypoint": module,
            },
            "HyperParameters": self._hyperparameters(job),
            "InputDataConfig": [_channel(channel) for channel in self.channels],
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
        file = f"file://{job.directory / REQUEST}"
        return [["aws", "sagemaker", "create-training-job", *region, "--cli-input-json", file]]

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
        request = {**self._request(job), "TrainingJobName": name, "Environment": environment}
        try:
            client = botocore.session.get_session().create_client("sagemaker", region_name=self.region)
            answer = client.create_training_job(**request)
        except (BotoCoreError, ClientError, ValueError) as error:
            raise SubmitError(
                f"SageMaker does not take the job: {last_line(error)}", "AWS_PROFILE or AWS_ACCESS_KEY_ID, --region"
            ) from None
        print(f"submitted: {answer['TrainingJobArn']}")
        return 0


def _channel(channel: str) -> dict[str, Any]:
    name, _, uri = channel.partition("=")
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}

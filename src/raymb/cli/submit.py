"""`raymb submit TARGET`: a run as the job of a cluster, checked before it is handed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperGroup

from raymb.errors import SpecError
from raymb.spec.sections import RunSpec
from raymb.submit.anyscale import Anyscale
from raymb.submit.kuberay import Kuberay
from raymb.submit.ray import Ray
from raymb.submit.sagemaker import Sagemaker
from raymb.submit.skypilot import Skypilot
from raymb.submit.slurm import Slurm
from raymb.submit.target import JobOptions, Target

TARGETS: dict[str, tuple[type[Target], str]] = {
    "ray": (Ray, "A job of a Ray cluster that runs."),
    "slurm": (Slurm, "A batch script for Slurm."),
    "kuberay": (Kuberay, "A RayJob for Kubernetes with KubeRay."),
    "anyscale": (Anyscale, "A job for Anyscale."),
    "sagemaker": (Sagemaker, "A training job for Amazon SageMaker."),
    "skypilot": (Skypilot, "A task for SkyPilot."),
}
"""Name to the target, whose fields are flags, and what it renders."""


class TargetGroup(TyperGroup):
    """The group of targets: a wrong one is answered with the list."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            raise SpecError(f"submit {cmd_name}: no such target", f"targets: {', '.join(self.commands)}")
        return super().get_command(ctx, cmd_name)


def command_for(name: str, kind: type[Target]) -> Callable[..., int]:
    """The command of a target."""

    def command(
        spec: RunSpec,
        target: Target,
        job: JobOptions,
        dry_run: bool = typer.Option(
            False, "--dry_run", help="Write the job's files, print the command that submits them.", show_default=False
        ),
    ) -> int:
        return _submit(spec, target, job, dry_run)

    command.__annotations__["target"] = kind
    command.__doc__ = (
        "Check a run as `finetune --dry_run` does, write it as a job into --output, and submit it with the target's "
        "own client. Takes finetune's flags.\n\nExamples:\n"
        f"  raymb submit {name} --config run.yaml --dry_run\n"
        f"  raymb submit {name} --hf_model_path Qwen/Qwen2.5-0.5B --dataset squad --num_workers 8 --tp 2 \\\n"
        "      --train_iters 100 --storage_path /shared/runs\n"
    )
    return command


def _submit(spec: RunSpec, target: Target, options: JobOptions, dry_run: bool) -> int:
    from rich.console import Console

    from raymb.submit.check import submission
    from raymb.submit.directory import write_job

    job = submission(spec, options, target, Console(stderr=True))
    for path in write_job(job, target):
        print(f"  {path}")
    if dry_run:
        print(f"submit it with\n  {target.shown_command(job)}")
        return 0
    return target.submit(job)

"""`raymb submit slurm`: a batch script that starts Ray on the job's nodes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raymb.errors import SpecError
from raymb.spec import RunSpec
from raymb.spec.values import Size, Words, written_as
from raymb.submit.target import SPEC, Submission, Target

SCRIPT, NODE = "job.sbatch", "node.sh"


TimeLimit = Annotated[
    str, written_as(r"(\d+-)?\d+(:\d\d){0,2}", "must be MINUTES, HH:MM:SS or DAYS-HH:MM:SS, such as 1-12:00:00")
]
Memory = Annotated[str, written_as(r"\d+[KMGT]?", "must be a number and K, M, G or T, such as 900G")]


class Slurm(Target):
    client: ClassVar[str] = "sbatch"
    package: ClassVar[str] = "run this on a login node of the cluster (Debian and Ubuntu: apt-get install slurm-client)"

    partition: str | None = None
    """Partition; default: the cluster's."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    time_limit: TimeLimit | None = None
    """Slurm's time limit: MINUTES, HH:MM:SS or DAYS-HH:MM:SS; default: the partition's."""
    gpu_type: str | None = None
    """Kind of GPU in Slurm's words, such as h100 for --gpus-per-node=h100:8."""
    cpus_per_node: Size | None = None
    """CPUs of a node; default: all of them with --exclusive, else 8 a worker."""
    memory: Memory | None = None
    """Memory of a node, such as 900G; default: all of it."""
    constraint: str | None = None
    """Features that the nodes must have."""
    exclusive: bool = True
    """Whole nodes, not shared with other jobs."""
    launcher: Literal["head-workers", "symmetric-run"] = "head-workers"
    """How Ray starts: a head and workers of the job's own, or `ray symmetric-run`, which ends every Ray of the user on
    its nodes when it ends."""
    requeue: bool = True
    """Start again after a preemption or a lost node, and at the end of --time_limit or --max_time, and resume from the
    newest checkpoint."""
    max_requeues: int = Field(default=50, ge=0)
    """How often at most."""
    stop_before: Size = 180
    """Seconds before --time_limit at which the run is asked for its last checkpoint; more than --grace_time."""
    container_image: str | None = None
    """Run in this image: what pyxis (an image URI or .sqsh file) or Apptainer (.sif file) takes."""
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    """What runs --container_image."""
    container_mounts: Words = Field(default=[])
    """Directory that the container sees, SOURCE or SOURCE:DESTINATION. Repeatable."""
    setup: Words = Field(default=[])
    """Line of shell before the start, such as "module load cuda" or "source /shared/env/bin/activate". Repeatable."""
    sbatch_options: Words = Field(default=[])
    """Another option of sbatch, such as --reservation=NAME. Repeatable."""
    srun_options: Words = Field(default=[])
    """Another option of srun, such as --auto-resume=1 on SageMaker HyperPod. Repeatable."""

    def starts_again(self) -> bool:
        return self.requeue

    def shares_files(self) -> bool:
        return True

    def sees(self, path: str, spec: RunSpec) -> bool:
        if self.container_image is None:
            return True
        absolute = Path(path).expanduser().absolute()
        return any(absolute.is_relative_to(destination) for _, destination in self._mounts())

    def where(self) -> str:
        return "--container_mounts DIRECTORY shows a directory to the container, under the same name"

    def _mounts(self) -> list[tuple[str, str]]:
        pairs = [mount.partition(":") for mount in self.container_mounts]
        return [(source, destination or source) for source, _, destination in pairs]

    def check(self, job: Submission) -> None:
        if job.spec.resilience.grace_time >= self.stop_before:
            raise SpecError(
                f"--stop_before {self.stop_before} leaves less than --grace_time {job.spec.resilience.grace_time:g} "
                "for the last checkpoint",
                f"--stop_before {int(job.spec.resilience.grace_time) + 120}",
            )
        if self.launcher == "symmetric-run" and not self.exclusive:
            raise SpecError(
                "--launcher symmetric-run ends every Ray of the user on its nodes, and --no_exclusive shares them",
                "use --launcher head-workers",
            )
        if self.container_mounts and self.container_image is None:
            raise SpecError("--container_mounts are of a container", "give --container_image, too")

    def files(self, job: Submission) -> dict[str, str]:
        return {SCRIPT: self._script(job), NODE: self._node(job)}

    def words(self, job: Submission) -> list[str]:
        return ["sbatch", str(job.directory / SCRIPT)]

    def _head(self, job: Submission) -> list[str]:
        """The lines that sbatch reads."""
        kind = f"{self.gpu_type}:" if self.gpu_type else ""
        cpus = self.cpus_per_node or (None if self.exclusive else 8 * job.workers_per_node)
        asked = {
            "job-name": job.name,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.time_limit,
            "nodes": job.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": cpus,
            "gpus-per-node": f"{kind}{job.gpus_per_node}" if job.gpus_per_node else None,
            "mem": self.memory or ("0" if self.exclusive else None),
            "constraint": self.constraint,
            "chdir": Path.cwd(),
            "output": job.directory / "%j.log",
            "signal": f"B:TERM@{self.stop_before}",
        }
        flags = ["--exclusive"] if self.exclusive else []
        flags += ["--requeue", "--open-mode=append"] if self.requeue else ["--no-requeue"]
        words = [f"--{name}={value}" for name, value in asked.items() if value is not None]
        return ["#!/bin/bash", *(f"#SBATCH {word}" for word in [*words, *flags, *self.sbatch_options]), ""]

    def _script(self, job: Submission) -> str:
        """What runs on the job's first node. The trap forwards to the driver alone: Ray has to live until the last
        checkpoint is written."""
        node = shlex.quote(str(job.directory / NODE))
        srun = shlex.join(["srun", "--kill-on-bad-exit=1", *self._pyxis(job), *self.srun_options])
        again = f"""# Out of --time_limit or --max_time: the same job resumes later.
if {{ [ "$code" = 75 ] || {{ [ -n "$stopping" ] && [ "$code" != 0 ]; }}; }} &&
    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {self.max_requeues} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
"""
        return "\n".join(
            [
                *self._head(job),
                "set -u",
                *self.setup,
                _NAMES.format(directory=shlex.quote(str(job.directory))),
                f'{srun} --cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none \\',
                f"    {self._apptainer(job)}bash {node} &",
                _WAIT + (again if self.requeue else ""),
                'exit "$code"\n',
            ]
        )

    def _node(self, job: Submission) -> str:
        """What srun runs on each node."""
        noted = """sh -c 'echo $$ > "$0"; exec "$@"' "$RAYMB_DRIVER_PID\""""
        run = shlex.join(job.command(str(job.directory / SPEC)))
        gpus = f"--num-gpus={job.gpus_per_node}"
        if self.launcher == "symmetric-run":
            lines = [
                "env RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=900",
                'ray symmetric-run --address "$RAYMB_HEAD" --min-nodes "$SLURM_JOB_NUM_NODES"',
                f'--num-cpus="$SLURM_CPUS_ON_NODE" {gpus} --disable-usage-stats --',
                f'env RAY_ADDRESS="$RAYMB_HEAD" {noted}',
            ]
        else:
            lines = [
                f'{shlex.quote(job.options.python)} -m raymb.submit.node --rank "$SLURM_NODEID" --head "$RAYMB_HEAD"',
                f'--ray=--num-cpus="$SLURM_CPUS_ON_NODE" --ray={gpus} --',
                noted,
            ]
        return "\n".join(["#!/bin/bash", "exec " + " \\\n    ".join([*lines, run]), ""])

    def _pyxis(self, job: Submission) -> list[str]:
        if self.container_image is None or self.container_runtime != "pyxis":
            return []
        joined = ",".join(f"{source}:{destination}" for source, destination in self._all_mounts(job))
        workdir = [f"--container-workdir={Path.cwd()}"] if self.sees(".", job.spec) else []
        return [f"--container-image={self.container_image}", f"--container-mounts={joined}", *workdir]

    def _apptainer(self, job: Submission) -> str:
        if self.container_image is None or self.container_runtime != "apptainer":
            return ""
        binds = [f"--bind={source}:{destination}" for source, destination in self._all_mounts(job)]
        workdir = [f"--pwd={Path.cwd()}"] if self.sees(".", job.spec) else []
        nv = ["--nv"] if job.gpus else []
        return shlex.join(["apptainer", "exec", *nv, *binds, *workdir, self.container_image]) + " "

    def _all_mounts(self, job: Submission) -> list[tuple[str, str]]:
        return [(str(job.directory), str(job.directory)), *self._mounts()]


_NAMES = """
# This script runs on the first of the job's nodes.
RAYMB_HEAD=$(hostname):$((20000 + SLURM_JOB_ID % 10000))
RAYMB_DRIVER_PID={directory}/$SLURM_JOB_ID.pid
rm -f "$RAYMB_DRIVER_PID"
# Only this job's processes may join its Ray, whose files other users' must not meet.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')
RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
RAY_AUTH_MODE=token
export RAYMB_HEAD RAYMB_DRIVER_PID RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_TMPDIR

stopping=
stop() {{
    stopping=1
    if [ -s "$RAYMB_DRIVER_PID" ]; then kill -TERM "$(cat "$RAYMB_DRIVER_PID")"; fi
}}
trap stop TERM
"""
_WAIT = """step=$!
wait "$step"
code=$?
while [ -n "$stopping" ] && kill -0 "$step" 2> /dev/null; do # a trap ends `wait`, not the step
    wait "$step"
    code=$?
done
rm -f "$RAYMB_DRIVER_PID"
"""

"""`raymb submit slurm`: a batch script that starts Ray on the job's nodes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raymb.errors import EXIT_OK, SpecError
from raymb.spec import RunSpec
from raymb.spec.values import Size, Words, written_as
from raymb.submit import ssh
from raymb.submit.paths import with_absolute_paths
from raymb.submit.shipping import CODE, SOURCE, shipped
from raymb.submit.target import SPEC, Submission, Target
from raymb.submit.working_dir import is_uploaded

SCRIPT, NODE = "job.sbatch", "node.sh"
_JOB = "{RAYMB_JOB}"
"""In a word of a script: the job's directory, which the shell knows."""

TimeLimit = Annotated[
    str, written_as(r"(\d+-)?\d+(:\d\d){0,2}", "must be MINUTES, HH:MM:SS or DAYS-HH:MM:SS, such as 1-12:00:00")
]
Host = Annotated[str, written_as(r"\w[\w.@-]*", "must be HOST or USER@HOST")]
Directory = Annotated[str, written_as(r"[\w./+][\w./+-]*", "must be letters, digits and '/', '.', '_', '+', '-'")]
Memory = Annotated[str, written_as(r"\d+[KMGT]?", "must be a number and K, M, G or T, such as 900G")]


class Slurm(Target):
    client: ClassVar[str] = "sbatch"
    package: ClassVar[str] = (
        "run this on a login node of the cluster (Debian and Ubuntu: apt-get install slurm-client), or give --ssh_host "
        "LOGIN_NODE"
    )
    uploads: ClassVar[bool] = True

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
    ssh_host: Host | None = None
    """Login node to submit from, as ssh takes it: rsync brings the job there, --working_dir with it, and paths are the
    cluster's own. Default: this machine."""
    ssh_directory: Directory = "raymb-jobs"
    """Directory on --ssh_host for jobs, each in one of its own with its output; below the home directory, or
    absolute."""

    def starts_again(self) -> bool:
        return self.requeue

    def shares_files(self) -> bool:
        return self.ssh_host is None

    def sees(self, path: str, spec: RunSpec) -> bool:
        return self.keeps(path, spec) or (self.ssh_host is not None and is_uploaded(path, spec))

    def keeps(self, path: str, spec: RunSpec) -> bool:
        if self.ssh_host is not None and not Path(path).is_absolute():
            return False
        absolute = Path(path).expanduser().absolute()
        mounted = any(absolute.is_relative_to(destination) for _, destination in self._mounts())
        return mounted or self.container_image is None

    def where(self) -> str:
        if self.ssh_host is not None:
            mounts = "; --container_mounts DIRECTORY shows one to the container" if self.container_image else ""
            return f"absolute paths are those of --ssh_host; to read, --working_dir . takes along what is here{mounts}"
        return "--container_mounts DIRECTORY shows a directory to the container, under the same name"

    def as_the_job_reads_it(self, spec: RunSpec) -> RunSpec:
        """Data stay where they are, and the run is written beside them: only code is copied where files are shared."""
        copied = spec.cluster.working_dir is not None and self.shares_files()
        return super().as_the_job_reads_it(with_absolute_paths(spec) if copied else spec)

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

    def files(self, job: Submission) -> Mapping[str, str | Path]:
        scripts = {SCRIPT: self._script(job), NODE: self._node(job)}
        if job.working_dir is None:
            return scripts
        return {**scripts, **shipped(job.working_dir, job.directory, follow=not self.shares_files())}

    def commands(self, job: Submission) -> list[list[str]]:
        return [["sbatch", str(job.directory / SCRIPT)]]

    def shown_command(self, job: Submission) -> str:
        if self.ssh_host is None:
            return super().shown_command(job)
        return ssh.shown(self.ssh_host, job.directory, self._there(job), ["sbatch", SCRIPT], job.options.pass_env)

    def submit(self, job: Submission) -> int:
        """sbatch hands this process's variables on; on another machine they are told to it."""
        if self.ssh_host is None:
            super().submit(job)
            print(f"its output: {job.directory}/JOBID.log")
            return EXIT_OK
        variables = {name: os.environ[name] for name in job.options.pass_env}
        there = self._there(job)
        ssh.hand_over(self.ssh_host, job.directory, there, ["sbatch", SCRIPT], variables)
        print(f"its output: {self.ssh_host}:{there}/JOBID.log")
        return EXIT_OK

    def _there(self, job: Submission) -> str:
        """A directory for each submission: an earlier one may still run from its own."""
        return f"{self.ssh_directory}/{job.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"

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
            "chdir": Path.cwd() if self.shares_files() else None,
            "output": f"{_without_patterns(job.directory)}/%j.log" if self.shares_files() else "%j.log",
            "signal": f"B:TERM@{self.stop_before}",
        }
        flags = ["--exclusive"] if self.exclusive else []
        flags += ["--requeue", "--open-mode=append"] if self.requeue else ["--no-requeue"]
        words = [f"--{name}={value}" for name, value in asked.items() if value is not None]
        words = [_sbatch_word(word) for word in [*words, *flags, *self.sbatch_options]]
        return ["#!/bin/bash", *(f"#SBATCH {word}" for word in words), ""]

    def _script(self, job: Submission) -> str:
        """What runs on the job's first node. The trap forwards to the driver alone: Ray has to live until the last
        checkpoint is written."""
        srun = _shell(["srun", "--kill-on-bad-exit=1", *self._pyxis(job), *self.srun_options])
        place = shlex.quote(str(job.directory)) if self.shares_files() else '"$SLURM_SUBMIT_DIR"'
        again = f"""# Out of --time_limit or --max_time: the same job resumes later.
if {{ [ "$code" = 75 ] || {{ [ -n "$stopping" ] && [ "$code" != 0 ]; }}; }} &&
    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {self.max_requeues} ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit "$code"
fi
"""
        # On another host nobody deletes it: each submission brings a copy of its own.
        copies = "" if self.shares_files() else f'rm -rf "$RAYMB_JOB/{CODE}" "$RAYMB_JOB/{SOURCE}"\n'
        return "\n".join(
            [
                *self._head(job),
                "set -u",
                f"export RAYMB_JOB={place}",
                *([f'cd "$RAYMB_JOB/{CODE}" || exit 1'] if job.working_dir else []),
                *self.setup,
                _NAMES,
                f'{srun}--cpus-per-task="$SLURM_CPUS_ON_NODE" --cpu-bind=none \\',
                f'    {_shell(self._apptainer(job))}bash "$RAYMB_JOB/{NODE}" &',
                _WAIT + (again if self.requeue else "") + copies,
                'exit "$code"\n',
            ]
        )

    def _node(self, job: Submission) -> str:
        """What srun runs on each node. A signal to all is for the command, for which bash waits."""
        noted = """sh -c 'echo $$ > "$0"; exec "$@"' "$RAYMB_DRIVER_PID\""""
        python = self._python(job)
        run = _shell([python, *job.command(f"{_JOB}/{SPEC}")[1:]]).strip()
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
                f'{shlex.quote(python)} -m raymb.submit.node --rank "$SLURM_NODEID" --head "$RAYMB_HEAD"',
                f'--ray=--num-cpus="$SLURM_CPUS_ON_NODE" --ray={gpus} --',
                noted,
            ]
        source = [f'export PYTHONPATH="$RAYMB_JOB/{SOURCE}${{PYTHONPATH:+:$PYTHONPATH}}"'] if job.working_dir else []
        return "\n".join([_DIRECTORY, *source, " \\\n    ".join([*lines, run]), ""])

    def _python(self, job: Submission) -> str:
        """A path is one from here, not from where the job starts."""
        python = job.options.python
        return str(Path(python).absolute()) if "/" in python and self.shares_files() else python

    def _pyxis(self, job: Submission) -> list[str]:
        if self.container_image is None or self.container_runtime != "pyxis":
            return []
        joined = ",".join(f"{source}:{destination}" for source, destination in self._all_mounts(job))
        workdir = [f"--container-workdir={place}" for place in self._start(job)]
        return [f"--container-image={self.container_image}", f"--container-mounts={joined}", *workdir]

    def _apptainer(self, job: Submission) -> list[str]:
        if self.container_image is None or self.container_runtime != "apptainer":
            return []
        binds = [f"--bind={source}:{destination}" for source, destination in self._all_mounts(job)]
        workdir = [f"--pwd={place}" for place in self._start(job)]
        nv = ["--nv"] if job.gpus else []
        return ["apptainer", "exec", *nv, *binds, *workdir, self.container_image]

    def _start(self, job: Submission) -> list[str]:
        """Where a container starts, if it has that place."""
        if job.working_dir is not None:
            return [f"{_JOB}/{CODE}"]
        if not self.shares_files():
            return [_JOB]
        return [str(Path.cwd())] if self.keeps(".", job.spec) else []

    def _all_mounts(self, job: Submission) -> list[tuple[str, str]]:
        return [(_JOB, _JOB), *self._mounts()]


def _shell(words: list[str]) -> str:
    """Words of bash, in which the job's directory stands for itself; a blank after them."""
    return "".join(f"{_quoted(word)} " for word in words)


def _quoted(word: str) -> str:
    return '"$RAYMB_JOB"'.join(shlex.quote(part) if part else "" for part in word.split(_JOB))


def _sbatch_word(word: str) -> str:
    """A word of a line that sbatch reads, which knows quotes and takes `#` for the begin of a comment."""
    name, is_value, value = word.partition("=")
    return f"{name}={shlex.quote(value)}" if is_value else word


def _without_patterns(directory: Path) -> str:
    """A path in which sbatch finds none of its own patterns, such as %j."""
    return str(directory).replace("%", "%%")


_NAMES = """
# This script runs on the first of the job's nodes.
RAYMB_HEAD=$(hostname):$((20000 + SLURM_JOB_ID % 10000))
RAYMB_DRIVER_PID=$RAYMB_JOB/$SLURM_JOB_ID.pid
rm -f "$RAYMB_DRIVER_PID"
# Only this job's processes may join its Ray.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')
RAY_AUTH_MODE=token
export RAYMB_HEAD RAYMB_DRIVER_PID RAY_AUTH_MODE RAY_AUTH_TOKEN

stopping=
stop() {
    stopping=1
    if [ -s "$RAYMB_DRIVER_PID" ]; then kill -TERM "$(cat "$RAYMB_DRIVER_PID")"; fi
}
trap stop TERM
"""
_DIRECTORY = """#!/bin/bash
# Ray's files are for nobody else to read, and go when the job ends; those of a start that was killed go now.
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID-$SLURM_NODEID"
rm -rf "$RAY_TMPDIR"
mkdir -m 700 "$RAY_TMPDIR" || exit 1
trap 'rm -rf "$RAY_TMPDIR"' EXIT
trap : TERM INT
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

"""A run under Ray, its job again under bare torchrun, and what Bridge's log says of either. The benches import it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import IO

from raymb.driver.trainer import worker_environment
from raymb.run.job import Job

_STEP = re.compile(
    r"\[([\d-]{10} [\d:]{8})[^\]]*\] iteration +(\d+)/.*?elapsed time per iteration \(ms\): ([\d.]+)"
    r".*?lm loss: ([\d.E+-]+)"
)
END_OF_JOB = '{"job": '
"""What the line begins with that bench_bridge.py prints after a job."""
_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception): .+)", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """end: Unix time, to the second. seconds: that it took. loss: nats a token."""

    end: float
    seconds: float
    loss: float


def finetune(work: Path, name: str, flags: Sequence[str]) -> Path:
    """The run directory of a run under Ray that does nothing but train and log every step."""
    own = ["--storage_path", str(work), "--experiment_name", name, "--save_interval", "0", "--eval_interval", "0"]
    own += ["--no_export_hf", "--log_interval", "1"]
    subprocess.run([sys.executable, "-m", "raymb", "finetune", *own, *flags], check=True, stdout=sys.stderr)
    return work / name


def again(run: Path, name: str) -> Path:
    """The file of the same job with a directory of its own beside the run's."""
    job, home = json.loads((run / "job.json").read_text(encoding="utf-8")), run.parent / name
    job |= {"run_dir": str(home), "checkpoint_dir": str(home / "checkpoints")}
    file = run.parent / f"{name}.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    return file


def start(jobs: Sequence[Path], output: IO[str] | int, program: Sequence[str] = (), **settings: str) -> Popen[str]:
    """Start jobs of one size under torchrun, one after the other, in the environment that raymb gives its workers.

    Args:
        jobs: their files.
        output: takes all output, as for Popen.
        program: Python's arguments; default: Bridge alone.
        settings: of the environment besides.
    """
    first = Job.from_json(jobs[0].read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += [
        str(first.plan.layout.num_workers),
        *(program or [str(Path(__file__).with_name("bench_bridge.py")), *map(str, jobs)]),
    ]
    environment = {**os.environ, **worker_environment(first), "PYTHONUNBUFFERED": "1", **settings}
    return Popen(command, stdout=output, stderr=STDOUT, env=environment, text=True, errors="replace")


def finished(job: Path, log: Path, program: Sequence[str] = (), **settings: str) -> str:
    """What a job wrote under torchrun, as for start; ends this program if the job fails."""
    with open(log, "w", encoding="utf-8") as output:
        failed = start([job], output, program, **settings).wait()
    text = read(log)
    if failed:
        sys.exit(f"{log.stem} failed: {cause(text)}\n{text[-4000:]}")
    return text


def read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def steps(text: str) -> list[Step]:
    """Of Bridge's log, each once, though a worker's log under Ray may hold a line twice."""
    found = {int(step): (when, ms, loss) for when, step, ms, loss in _STEP.findall(text)}
    return [
        Step(datetime.strptime(when, "%Y-%m-%d %H:%M:%S").timestamp(), float(ms) / 1e3, float(loss))
        for _, (when, ms, loss) in sorted(found.items())
    ]


def layout_of(run: Path) -> str:
    """`TP2 x PP2 x CP1 x DP2, micro batch 1`"""
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    sizes = {"TP": "tensor", "PP": "pipeline", "CP": "context", "DP": "data"}
    words = " x ".join(f"{short}{plan[f'{name}_parallel_size']}" for short, name in sizes.items())
    return f"{words}, micro batch {plan['micro_batch_size']}"


def peak(text: str) -> float:
    """The most bytes that torch's allocator held on any rank; 0 on CPUs."""
    return max((json.loads(line)["peak"] for line in text.splitlines() if line.startswith(END_OF_JOB)), default=0.0)


def cause(text: str) -> str:
    """Why a job failed, in a line: torchrun's own words stand below the first error."""
    if "OutOfMemoryError" in text:
        return "out of memory"
    errors = _ERROR.findall(text) or text.strip().splitlines()[-1:] or ["no output"]
    return errors[0][:200]

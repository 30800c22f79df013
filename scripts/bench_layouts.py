"""Runs layouts side by side on the GPUs of one machine, and prints what was estimated and what was measured."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_torchrun import cause, peak, read, start, steps

from raymb.cluster import Resources
from raymb.errors import RaymbError
from raymb.launch import job_of
from raymb.plan import Plan
from raymb.preflight import preflight
from raymb.run_dir import RunDir
from raymb.spec import load_spec

STEPS, WARM_UP, SECONDS = 8, 3, 240


@dataclass
class Trial:
    """A layout on its way: plan and job file, then its log."""

    flags: str
    plan: Plan
    job: Path
    log: Path
    failed: bool = False


def main() -> None:
    words = sys.argv[1:]
    if "--" not in words:
        sys.exit(__doc__)
    common, layouts = words[: words.index("--")], words[words.index("--") + 1 :]
    with tempfile.TemporaryDirectory(prefix="bench-layouts-") as work:
        trials = [_prepare(Path(work), number, common, flags) for number, flags in enumerate(layouts)]
        free = _Gpus()
        threads = [threading.Thread(target=_run, args=(trial, free)) for trial in trials]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _print(trials)


def _prepare(work: Path, number: int, common: list[str], flags: str) -> Trial:
    given = {"train_iters": STEPS, "save_interval": 0, "eval_interval": 0, "log_interval": 1, "export_hf": False}
    given |= {"storage_path": work, "experiment_name": f"layout-{number}", **_pairs([*common, *shlex.split(flags)])}
    checked = preflight(load_spec({name: str(value) for name, value in given.items()}))
    place = RunDir.of(checked.spec, f"layout-{number}")
    place.path.mkdir(parents=True)
    plan = checked.plan
    job = job_of(checked, {plan.num_workers: plan}, plan.backend, Resources(1.0, 1, 1), place)
    place.job.write_text(job.to_json(), encoding="utf-8")
    return Trial(flags, plan, place.job, work / f"{number}.log")


def _pairs(words: list[str]) -> dict[str, str]:
    """--name value ... as a mapping."""
    return {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}


class _Gpus:
    """Hands GPUs to layouts, each to one at a time."""

    def __init__(self) -> None:
        self.free = list(range(torch.cuda.device_count()))
        self.changed = threading.Condition()

    def take(self, count: int) -> list[int]:
        with self.changed:
            self.changed.wait_for(lambda: len(self.free) >= count)
            taken, self.free = self.free[:count], self.free[count:]
            return taken

    def give_back(self, gpus: list[int]) -> None:
        with self.changed:
            self.free += gpus
            self.changed.notify_all()


def _run(trial: Trial, free: _Gpus) -> None:
    on_gpu = trial.plan.backend == "cuda"
    gpus = free.take(trial.plan.num_workers) if on_gpu else []
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if on_gpu else {}
    began = time.time()
    process = start(trial.job, trial.log, **visible)
    try:
        trial.failed = process.wait(SECONDS) != 0
    except subprocess.TimeoutExpired:
        trial.failed = True
        process.terminate()
        process.wait()
    free.give_back(gpus)
    print(f"{trial.flags}: {'failed' if trial.failed else 'done'}, {time.time() - began:.0f} s", file=sys.stderr)


def _print(trials: list[Trial]) -> None:
    print("| layout | estimated GB | measured GB | | estimated ms | measured ms | |\n|" + "---|" * 7)
    errors: dict[str, list[float]] = {"memory": [], "time": []}
    for trial in trials:
        text = read(trial.log)
        times = [step.seconds for step in steps(text)]
        if trial.failed or len(times) <= WARM_UP:
            print(f"| `{trial.flags}` | {_memory(trial.plan) / 1e9:.1f} | {cause(text)} | | | | |")
            continue
        cells: list[Any] = [f"`{trial.flags}`"]
        seconds = (trial.plan.step_time or {}).get("total", 0.0)
        for kind, estimated, measured, digits in (
            ("memory", _memory(trial.plan) / 1e9, peak(text) / 1e9, 1),
            ("time", seconds * 1e3, median(times[WARM_UP:]) * 1e3, 0),
        ):
            error = estimated / measured - 1 if measured else 0.0
            cells += [f"{estimated:.{digits}f}", f"{measured:.{digits}f}", f"{error:+.1%}" if estimated else ""]
            if estimated and measured:
                errors[kind].append(abs(error))
        print(f"| {' | '.join(cells)} |")
    for kind, found in errors.items():
        if found:
            print(f"{kind}: median error {median(found):.1%}, worst {max(found):.1%}, of {len(found)}")


def _memory(plan: Plan) -> int:
    """What torch's allocator should have at its peak."""
    return plan.memory["total"] - plan.memory["context"] if plan.memory else 0


if __name__ == "__main__":
    try:
        main()
    except RaymbError as error:
        sys.exit(f"error: {error}")

"""What scripts/bench-layouts runs."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from bench_torchrun import END_OF_JOB, cause, peak, start, steps

from raymb.cluster import Resources
from raymb.errors import RaymbError
from raymb.launch import job_of
from raymb.plan import Plan
from raymb.plan.automatic import flags_of, searched
from raymb.preflight import checked_shape, local_gpu, preflight
from raymb.run_dir import RunDir
from raymb.spec import RunSpec, load_spec
from raymb.spec.training import worker_range
from raymb.trainer import worker_environment

STEPS, WARM_UP, SECONDS = 7, 2, 240


@dataclass
class Trial:
    """A layout: its flags, plan and job file, and what the job has written.

    environment: of its processes.
    """

    flags: str
    plan: Plan
    environment: dict[str, str]
    job: Path
    lines: list[str] = field(default_factory=list)


def main() -> None:
    words = sys.argv[1:]
    if "--" not in words:
        sys.exit(__doc__)
    common, layouts = words[: words.index("--")], words[words.index("--") + 1 :]
    everything = layouts == ["all"]
    if everything:
        layouts = _all(common)
    print("| layout | estimated GB | measured GB | | estimated ms | measured ms | | last loss |", flush=True)
    print("|" + "---|" * 8, flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-layouts-") as work:
        trials = [_prepare(Path(work), number, common, flags) for number, flags in enumerate(layouts)]
        left = trials
        while left:
            alike = [one for one in left if _processes(one) == _processes(left[0])]
            left = [one for one in left if one not in alike]
            _run_all(alike)
    for kind in ("memory", "time"):
        errors = [abs(error) for trial in trials if (error := _errors(trial)[kind]) is not None]
        if errors:
            print(f"{kind}: median error {median(errors):.1%}, worst {max(errors):.1%}, of {len(errors)}")
    if everything:
        best = min((trial for trial in trials if _measured(trial)["time"]), key=lambda trial: _measured(trial)["time"])
        ratio = _measured(trials[0])["time"] / _measured(best)["time"]
        print(f"raymb's choice `{trials[0].flags}` takes {ratio:.3f} times the step time of the best, `{best.flags}`")


def _all(common: list[str]) -> list[str]:
    """The flags of every layout that fits, the one that raymb would choose first."""
    spec = _spec(common)
    gpu = local_gpu(spec)
    if gpu is None:
        sys.exit("all layouts are those that fit a GPU; give --gpu")
    workers = worker_range(spec.parallel)[1]
    found = searched(spec, checked_shape(spec), gpu, workers)
    return [flags_of(one.layout) for one in found if one.fits(gpu)]


def _prepare(work: Path, number: int, common: list[str], flags: str) -> Trial:
    given = {"train_iters": STEPS, "save_interval": 0, "eval_interval": 0, "log_interval": 1, "export_hf": False}
    given |= {"storage_path": work, "experiment_name": f"layout-{number}"}
    checked = preflight(_spec([*common, *shlex.split(flags)], **given))
    place = RunDir.of(checked.spec, f"layout-{number}")
    place.path.mkdir(parents=True)
    plan = checked.plan
    job = job_of(checked, {plan.num_workers: plan}, plan.backend, Resources(1.0, 1, 1), place)
    place.job.write_text(job.to_json(), encoding="utf-8")
    return Trial(flags, plan, worker_environment(job), place.job)


def _processes(trial: Trial) -> tuple[int, dict[str, str]]:
    return trial.plan.num_workers, trial.environment


def _spec(words: list[str], **given: object) -> RunSpec:
    """Of `--name value`, `--name`, `--no_name` and `section.field=value` words, on top of what is given."""
    flags: dict[str, object] = {}
    overrides = []
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--no_") and after.startswith("--"):
            flags[word.removeprefix("--no_")] = False
        elif word.startswith("--"):
            flags[word.removeprefix("--")] = True if after.startswith("--") or "=" in after else after
        elif "=" in word:
            overrides.append(word)
    return load_spec({name: str(value) for name, value in (given | flags).items()}, overrides=overrides)


def _run_all(trials: list[Trial]) -> None:
    """Of processes that are alike, on as many groups of GPUs side by side as there are."""
    size, on_gpu = trials[0].plan.num_workers, trials[0].plan.backend == "cuda"
    groups = max(1, torch.cuda.device_count() // size) if on_gpu else 1
    threads = []
    for group in range(groups):
        gpus = ",".join(str(gpu) for gpu in range(group * size, (group + 1) * size))
        threads.append(threading.Thread(target=_run, args=(trials[group::groups], gpus if on_gpu else None)))
        threads[-1].start()
    for thread in threads:
        thread.join()


def _run(trials: list[Trial], gpus: str | None) -> None:
    """One process for each GPU trains all trials; after one that fails new processes train the rest, and the one itself
    again if others had been there before it, which may have left something behind."""
    while trials:
        first = trials[0]
        visible = {"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}
        process = start([trial.job for trial in trials], subprocess.PIPE, **visible)
        assert process.stdout is not None
        timer = threading.Timer(SECONDS * len(trials), process.terminate)
        timer.start()
        for line in process.stdout:
            if trials:
                trials[0].lines.append(line)
            if line.startswith(END_OF_JOB):
                _print(trials.pop(0))
        timer.cancel()
        if process.wait() and trials:
            if trials[0] is first:
                _print(trials.pop(0))
            else:
                trials[0].lines.clear()


def _print(trial: Trial) -> None:
    estimated, measured, errors = _estimated(trial), _measured(trial), _errors(trial)
    cells = [f"`{trial.flags}`"]
    for kind, unit, digits in (("memory", 1e9, 1), ("time", 1e-3, 0)):
        cells.append(f"{estimated[kind] / unit:.{digits}f}")
        cells.append(f"{measured[kind] / unit:.{digits}f}" if measured[kind] else "")
        cells.append("" if errors[kind] is None else f"{errors[kind]:+.1%}")
    if not measured["time"]:
        cells[2] = cause("".join(trial.lines))
    taken = steps("".join(trial.lines))
    cells.append(f"{taken[-1].loss:.6f}" if taken else "")
    print(f"| {' | '.join(cells)} |", flush=True)


def _estimated(trial: Trial) -> dict[str, float]:
    """Bytes of torch's allocator at its peak, and seconds of a step; 0 where the plan has none, as on CPUs."""
    memory, seconds = trial.plan.memory, trial.plan.step_time
    return {
        "memory": memory["total"] - memory["context"] if memory else 0.0,
        "time": seconds["total"] if seconds else 0.0,
    }


def _measured(trial: Trial) -> dict[str, float]:
    """The same; 0 where nothing was measured."""
    text = "".join(trial.lines)
    times = [step.seconds for step in steps(text)][WARM_UP:]
    return {"memory": peak(text), "time": median(times) if times else 0.0}


def _errors(trial: Trial) -> dict[str, float | None]:
    estimated, measured = _estimated(trial), _measured(trial)
    return {
        kind: estimated[kind] / measured[kind] - 1 if estimated[kind] and measured[kind] else None for kind in measured
    }


if __name__ == "__main__":
    try:
        main()
    except RaymbError as error:
        sys.exit(f"error: {error}")

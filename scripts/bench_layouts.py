"""What scripts/bench-layouts runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
import typer
from bench_torchrun import END_OF_JOB, Step, cause, peak, start, steps

from raymb.cli.options import with_spec_options
from raymb.driver.cluster import Resources
from raymb.driver.preflight import checked_shape, local_gpu, preflight
from raymb.driver.trainer import worker_environment
from raymb.errors import RaymbError
from raymb.launch import job_of
from raymb.plan import Plan
from raymb.plan.automatic import flags_of, searched
from raymb.run.directory import RunDir
from raymb.spec import RunSpec
from raymb.spec.training import worker_range

STEPS, WARM_UP, SECONDS = 7, 2, 240


@dataclass
class Trial:
    """A layout: its flags, plan and job file, and what the job has written.

    environment: of its processes.
    """

    flags: str
    plan: Plan
    environment: frozenset[tuple[str, str]]
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
        alike: dict[tuple[int, frozenset[tuple[str, str]]], list[Trial]] = {}
        for trial in trials:
            alike.setdefault((trial.plan.layout.num_workers, trial.environment), []).append(trial)
        for (size, _), group in alike.items():
            _run_all(size, group)
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
    own = ["--train_iters", str(STEPS), "--save_interval", "0", "--eval_interval", "0", "--log_interval", "1"]
    own += ["--no_export_hf", "--storage_path", str(work), "--experiment_name", f"layout-{number}"]
    checked = preflight(_spec([*own, *common, *shlex.split(flags)]))
    place = RunDir.of(checked.spec, f"layout-{number}")
    place.path.mkdir(parents=True)
    plan = checked.plan
    job = job_of(checked, {plan.layout.num_workers: plan}, plan.backend, Resources(1.0, 1, 1), place)
    place.job.write_text(job.to_json(), encoding="utf-8")
    return Trial(flags, plan, frozenset(worker_environment(job).items()), place.job)


def _spec(words: list[str]) -> RunSpec:
    """Of finetune's words; of a flag that is given twice the last one counts."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command()(with_spec_options(_itself))
    return command(words, standalone_mode=False)  # type: ignore[no-any-return]


def _itself(spec: RunSpec) -> RunSpec:
    return spec


def _run_all(size: int, trials: list[Trial]) -> None:
    """On as many groups of GPUs side by side as there are."""
    on_gpu = trials[0].plan.backend == "cuda"
    count = torch.cuda.device_count()
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))).split(",")
    groups = max(1, count // size) if on_gpu else 1
    threads = []
    for group in range(groups):
        gpus = ",".join(visible[group * size : (group + 1) * size])
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
    cells.append("".join(f"{step.loss:.6f}" for step in _taken(trial)[-1:]))
    print(f"| {' | '.join(cells)} |", flush=True)


def _estimated(trial: Trial) -> dict[str, float]:
    """Bytes of torch's allocator at its peak, and seconds of a step; 0 where the plan has none, as on CPUs."""
    memory, seconds = trial.plan.memory, trial.plan.step_time
    return {
        "memory": memory["total"] - memory["context"] - memory["graphs"] if memory else 0.0,
        "time": seconds["total"] if seconds else 0.0,
    }


def _measured(trial: Trial) -> dict[str, float]:
    """The same; 0 where nothing was measured."""
    times = [step.seconds for step in _taken(trial)][WARM_UP:]
    return {"memory": peak("".join(trial.lines)), "time": median(times) if times else 0.0}


def _taken(trial: Trial) -> list[Step]:
    return steps("".join(trial.lines))


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

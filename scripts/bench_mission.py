"""What scripts/bench-mission runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import mean, median

from bench_torchrun import again, finetune, finished, layout_of, read, steps

from raymb.telemetry.events import read_lines
from raymb.telemetry.records import Line

STEPS, STEPS_ON_CPUS, WARM_UP = 25, 20, 5
FAULTS = Path(__file__).parent.parent / "tests" / "faults"
show = partial(print, flush=True)


def main() -> None:
    flags = sys.argv[1:]
    if "--train_iters" not in flags:
        sys.exit("bench-mission needs finetune's flags, --train_iters among them")
    train_iters = int(flags[flags.index("--train_iters") + 1])
    show(f"{datetime.now():%Y-%m-%d}, `raymb finetune {shlex.join(flags)}`\n\n| what | measured |\n|---|---|")
    with tempfile.TemporaryDirectory(prefix="bench-mission-") as work:
        for what, measured in _runs(Path(work), flags, train_iters):
            show(f"| {what} | {measured} |")
        show("\n| layout | under Ray, ms a step | under torchrun | ratio | tokens/s/GPU |\n" + "|---" * 5 + "|")
        for name, layout in (("given", flags), ("automatic", _without_layout(flags))):
            show(_speed(Path(work), name, layout))


def _runs(work: Path, flags: list[str], train_iters: int) -> Iterator[tuple[str, str]]:
    saving = [*flags, "--save_interval", str(train_iters // 4)]
    whole = _losses(run := finetune(work, "undisturbed", [*saving, "--export_hf"]))
    seconds = _event(run, "ended")["time"] - _event(run, "started")["time"]
    yield "the run, its checkpoint and its verified export", f"{seconds:.0f} s, loss {whole[0]:.4f} to {whole[-1]:.4f}"
    killed = finetune(work, "killed", [*saving, *_kill(work, train_iters // 2)])
    failure, training = _event(killed, "failure"), _event(killed, "training")
    seconds, lost = training["time"] - failure["time"], failure["step"] - training["step"]
    yield f"a worker killed after step {train_iters // 2}", f"training again after {seconds:.1f} s, {lost} steps lost"
    after = _losses(killed)
    yield "its losses beside the undisturbed", f"{_worst(after, whole)}; the last ones {after[-1]} and {whole[-1]}"
    on_cpus = finetune(work, "cpu", [*flags, "--backend", "cpu", f"train.exit_interval={STEPS_ON_CPUS}"])
    yield f"losses of {STEPS_ON_CPUS} steps against as many CPU workers' in fp32", _worst(whole, _losses(on_cpus))


def _kill(work: Path, step: int) -> list[str]:
    """Flags with which rank 1 kills itself after a step."""
    faults = work / "faults.json"
    faults.write_text(json.dumps([{"do": "kill", "phase": "step", "rank": 1, "step": step}]), encoding="utf-8")
    path = os.pathsep.join((str(FAULTS), os.environ["PYTHONPATH"]))
    return ["--env", f"PYTHONPATH={path}", "--env", f"RAYMB_FAULTS={faults}"]


def _event(run: Path, name: str) -> Line:
    """The last one of that name."""
    return [event for event in read_lines(run / "events.jsonl") if event["event"] == name][-1]


def _losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_lines(run / "metrics.jsonl") if record["kind"] == "train"]


def _worst(losses: list[float], others: list[float]) -> str:
    """Of the steps that both have."""
    apart = [abs(one / other - 1) for one, other in zip(losses, others, strict=False)]
    worst = max(apart)
    where = f"within {worst:.1e} (step {apart.index(worst) + 1}), {mean(apart):.1e} on average, relative"
    return where if worst else "equal, bit by bit"


def _without_layout(flags: list[str]) -> list[str]:
    """What `auto` chooses is left to it."""
    left = [word.endswith("_parallel_size") or word == "--micro_batch_size" for word in flags]
    return [word for word, flag, value in zip(flags, left, [False, *left], strict=False) if not flag and not value]


def _speed(work: Path, name: str, flags: list[str]) -> str:
    """A row: one run of each side."""
    run = finetune(work, name, [*flags, "--train_iters", str(STEPS)])
    bare = finished(again(run, f"{name}-torchrun"), work / f"{name}-torchrun.log")
    sides = ("".join(map(read, run.glob("logs/*.log"))), bare)
    ray, torchrun = (median([step.seconds for step in steps(text)][WARM_UP:]) for text in sides)
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    rate = plan["global_batch_size"] * plan["seq_length"] / plan["num_workers"] / ray
    times = f"{ray * 1e3:.1f} | {torchrun * 1e3:.1f} | {ray / torchrun:.3f}"
    return f"| {name}: {layout_of(run)} | {times} | {rate:,.0f} |"


if __name__ == "__main__":
    main()

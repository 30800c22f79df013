"""Each side in turn, and one table. A side's step time is the median after its first five steps."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from bench_torchrun import again, finetune, finished, layout_of, peak, steps

SIDES = {
    "raymb": "raymb under Ray",
    "torchrun": "Bridge under torchrun",
    "ddp": "TRL with Liger, DDP",
    "fsdp2": "TRL with Liger, FSDP2",
}
WARM_UP = 5


@dataclass(frozen=True)
class Result:
    """Seconds of a step, seconds from the command to the end of the first step, peak bytes of torch's allocator on the
    first GPU, and the loss of the last step."""

    step: float
    start: float
    memory: float
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", default=",".join(SIDES), help="which, in which order, after raymb")
    parser.add_argument("--micro_batches", default="8,16", help="TRL's: all are tried, and the table has each")
    parser.add_argument("--rounds", type=int, default=1, help="of the fastest TRL size after the first")
    parser.add_argument("--warm", action="store_true", help="start raymb once before, so that nothing is compiled anew")
    given, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as work:
        if given.warm:
            finetune(Path(work), "warm-up", [*flags, "--train_iters", "2"])
        table = _Table(" ".join(flags))
        others = _others(given.sides.split(","), given.micro_batches.split(","))
        for number in range(1, given.rounds + 1):
            name = f"raymb-{number}"
            ours = _raymb(Path(work), name, flags)
            table.begin(Path(work, name))
            table.print("raymb", ours)
            others = _fastest(_compared(Path(work), name, ours, table, others))


def _others(sides: list[str], sizes: list[str]) -> list[tuple[str, str]]:
    """(side, TRL's micro-batch) besides raymb."""
    return [(side, size) for side in sides if side != "raymb" for size in ([""] if side == "torchrun" else sizes)]


def _compared(
    work: Path, name: str, ours: Result, table: _Table, others: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Seconds of a step of each of the others that succeeds, printed beside raymb's."""
    found = {}
    for side, size in others:
        try:
            result = _torchrun(work, name, side, size)
        except SystemExit as failed:  # of TRL's sizes one may be too large; the others are compared
            print(f"{side} {size}: {failed}"[:2000], file=sys.stderr, flush=True)
            continue
        table.print(side, result, size)
        print(f"    raymb is {result.step / ours.step:.3f} times as fast", file=sys.stderr, flush=True)
        found[side, size] = result.step
    return found


def _fastest(seconds: dict[tuple[str, str], float]) -> list[tuple[str, str]]:
    """Of each side the micro-batch that took the fewest seconds a step: a later round tries no other."""
    best = {side: (side, size) for (side, size), _ in sorted(seconds.items(), key=lambda one: -one[1])}
    return list(best.values())


def _raymb(work: Path, name: str, flags: Sequence[str]) -> Result:
    began = time.time()
    records = _records(finetune(work, name, flags))
    seconds, last = [one["step_seconds"] for one in records], records[-1]
    return Result(median(seconds[WARM_UP:]), records[0]["time"] - began, last["memory_bytes"], last["loss"])


def _records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def _torchrun(work: Path, name: str, side: str, micro_batch: str) -> Result:
    """Of Bridge alone, or of TRL with so many samples in a micro-batch; what raymb's run of this name did."""
    file, program = again(work / name, f"{name}-{side}{micro_batch}"), []
    if side != "torchrun":
        metrics = str(work / name / "metrics.jsonl")
        program = [str(Path(__file__).with_name("bench_trl.py")), str(file), side, micro_batch, metrics]
    # Where raymb has its compiled kernels, so that no side starts faster for having found them.
    kernels = {"TRITON_CACHE_DIR": f"{work}/_compiled/triton", "TORCHINDUCTOR_CACHE_DIR": f"{work}/_compiled/inductor"}
    began = time.time()
    text = finished(file, work / f"{file.stem}.log", program, **kernels)
    return _of_megatron(text, began) if side == "torchrun" else _of_trl(text, began)


def _of_megatron(text: str, began: float) -> Result:
    found = steps(text)
    seconds = [step.seconds for step in found]
    return Result(median(seconds[WARM_UP:]), found[0].end - began, peak(text), found[-1].loss)


def _of_trl(text: str, began: float) -> Result:
    records = [json.loads(line) for line in text.splitlines() if line.startswith('{"step"')]
    seconds, last = [one["seconds"] for one in records], records[-1]
    return Result(median(seconds[WARM_UP:]), records[0]["time"] - began, last["memory"], last["loss"])


class _Table:
    """Prints a row as soon as a side is done. Floating-point operations are counted once, by Megatron's formula."""

    def __init__(self, flags: str):
        self.flags = flags
        self.heading = True

    def begin(self, run: Path) -> None:
        """A round, by raymb's run; the first one has the heading."""
        plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
        self.last = _records(run)[-1]
        self.tokens = plan["global_batch_size"] * plan["seq_length"] / plan["num_workers"]
        if self.heading:
            chip = plan["gpu"] if "mfu" in self.last else plan["backend"]  # the plan supposes one where nobody knows it
            where = f"{datetime.now():%Y-%m-%d}, {plan['num_workers']} x {chip}, raymb's layout {layout_of(run)}"
            print(f"{where}\n`{self.flags}`\n")
            print(
                "| | ms a step | tokens/s/GPU | TFLOP/s | MFU | peak GB | start, s | last loss |\n" + "|---" * 8 + "|"
            )
            self.heading = False

    def print(self, side: str, one: Result, micro_batch: str = "") -> None:
        speed = self.last["step_seconds"] / one.step  # beside the step that the operations were counted of
        rate = self.last["tflops_per_worker"] * speed
        mfu = f"{self.last['mfu'] * speed:.1%}" if "mfu" in self.last else "-"
        name = SIDES[side] + (f", micro batch {micro_batch}" if micro_batch else "")
        print(f"| {name} | {one.step * 1e3:.1f} | {self.tokens / one.step:,.0f} | {rate:.4g} | {mfu} | "
              f"{one.memory / 1e9:.1f} | {one.start:.1f} | {one.loss:.4f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()

"""What scripts/bench-overhead runs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median

from bench_torchrun import again, finetune, finished, read, steps

WARM_UP = 5


def main() -> None:
    flags, rounds = sys.argv[1:], 2
    if flags and flags[0].isdigit():
        rounds = int(flags.pop(0))
    seconds: dict[str, list[float]] = {"raymb under Ray": [], "Bridge under torchrun": []}
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as work:
        for number in range(rounds):
            run = finetune(Path(work), f"ray-{number}", flags)
            bare = finished(again(run, f"torchrun-{number}"), Path(work, f"torchrun-{number}.log"))
            logs = ("".join(map(read, run.glob("logs/*.log"))), bare)
            for side, text in zip(seconds.values(), logs, strict=True):
                side += [step.seconds for step in steps(text)[WARM_UP:]]
    for name, times in seconds.items():
        print(f"{name:<24}{median(times) * 1e3:10.2f} ms a step (median of {len(times)})")
    ray, bare = (median(times) for times in seconds.values())
    print(f"{'ratio':<24}{ray / bare:10.4f}")


if __name__ == "__main__":
    main()

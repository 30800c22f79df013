"""What scripts/bench-startup runs."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from subprocess import PIPE

from bench_torchrun import again, finetune, start, steps


def main() -> None:
    flags, rounds = sys.argv[1:], 3
    if flags and flags[0].isdigit():
        rounds = max(2, int(flags.pop(0)))
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as work:
        for number in range(rounds):
            run = finetune(Path(work), f"ray-{number}", ["--ray_address", "local", *flags])
            told = json.loads((run / "startup.json").read_text(encoding="utf-8"))
            bare = seconds_of(again(run, f"torchrun-{number}"))
            found.append({**told["phases"], "raymb": told["seconds"], "the same job under torchrun": bare})
    print("| phase | first, s | then, s |\n|---|---|---|")
    for name, first in found[0].items():
        later = [one[name] for one in found[1:]]
        print(f"| {name} | {first:.2f} | {median(later):.2f} ({', '.join(f'{one:.2f}' for one in later)}) |")


def seconds_of(job: Path) -> float:
    """From torchrun's start to the end of the first step."""
    began, first = time.time(), 0.0
    with start([job], PIPE) as process:
        for line in process.stdout or ():
            if not first and steps(line):
                first = time.time() - began
    if process.returncode or not first:
        sys.exit(f"torchrun failed on {job}")
    return first


if __name__ == "__main__":
    main()

"""Each side in turn, and one table. A side's step time is the median behind its first five steps."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from raymb.gpus import gpu_named

SIDES = {
    "raymb": "raymb under Ray",
    "torchrun": "Bridge under torchrun",
    "ddp": "Hugging Face, DDP",
    "fsdp2": "Hugging Face, FSDP2",
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
    parser.add_argument("--sides", default=",".join(SIDES), help="which, in which order")
    given, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as work:
        results: dict[str, Result] = {}
        sides = given.sides.split(",")
        for side in ["raymb", *(side for side in sides if side != "raymb")]:
            print(f"{SIDES[side]} ...", file=sys.stderr, flush=True)
            results[side] = _raymb(Path(work), flags) if side == "raymb" else _torchrun(Path(work), side)
        _print(Path(work), results, " ".join(flags))


def _raymb(work: Path, flags: list[str]) -> Result:
    own = ["--storage_path", str(work), "--experiment_name", "raymb", "--save_interval", "0", "--eval_interval", "0"]
    own += ["--no_export_hf", "--log_interval", "1"]
    began = time.time()
    subprocess.run([sys.executable, "-m", "raymb", "finetune", *own, *flags], check=True, stdout=sys.stderr)
    steps = _records(work / "raymb")
    seconds = [one["step_seconds"] for one in steps]
    return Result(median(seconds[WARM_UP:]), steps[0]["time"] - began, steps[-1]["memory_bytes"], steps[-1]["loss"])


def _records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def _torchrun(work: Path, side: str) -> Result:
    job = json.loads((work / "raymb" / "job.json").read_text(encoding="utf-8"))
    home = work / side
    job |= {"run_dir": str(home), "checkpoint_dir": str(home / "checkpoints")}
    file = work / f"{side}.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    program = ["-m", "raymb.worker", str(file)]
    if side != "torchrun":
        program = [str(Path(__file__).with_name("bench_hugging_face.py")), str(file), side]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    settings = {"OMP_NUM_THREADS": str(job["threads"]), "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    settings |= {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    if job["backend"] == "cuda":  # where raymb has its compiled kernels
        settings |= {f"{name}_CACHE_DIR": f"{work}/_compiled/{name.lower()}" for name in ("TRITON", "TORCHINDUCTOR")}
    log, began = work / f"{side}.log", time.time()
    with open(log, "w", encoding="utf-8") as output:
        done = subprocess.run(
            [*command, str(job["plan"]["num_workers"]), *program],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | settings,
            check=False,
        )
    text = log.read_text(encoding="utf-8", errors="replace")
    if done.returncode:
        sys.exit(f"{SIDES[side]} failed:\n{text[-4000:]}")
    return _of_megatron(text, began) if side == "torchrun" else _of_hugging_face(text, began)


def _of_megatron(text: str, began: float) -> Result:
    line = r"\[([\d :-]{19})[^\]]*\] iteration +(\d+)/.*?per iteration \(ms\): ([\d.]+).*?lm loss: ([\d.E+-]+)"
    steps = {int(step): (when, float(ms), float(loss)) for when, step, ms, loss in re.findall(line, text)}
    first = datetime.strptime(steps[1][0], "%Y-%m-%d %H:%M:%S").timestamp()
    memory = [float(size) for size in re.findall(r"mem-max-allocated-gigabytes: ([\d.]+)", text)]
    times = [ms / 1e3 for _, (_, ms, _) in sorted(steps.items())]
    return Result(median(times[WARM_UP:]), first - began, max(memory, default=0) * 1e9, steps[max(steps)][2])


def _of_hugging_face(text: str, began: float) -> Result:
    steps = [json.loads(line) for line in text.splitlines() if line.startswith('{"step"')]
    seconds = [one["seconds"] for one in steps]
    return Result(median(seconds[WARM_UP:]), steps[0]["time"] - began, steps[-1]["memory"], steps[-1]["loss"])


def _print(work: Path, results: dict[str, Result], flags: str) -> None:
    """Floating-point operations are counted once, by Megatron's formula, for all sides."""
    plan = json.loads((work / "raymb" / "plan.json").read_text(encoding="utf-8"))
    last = _records(work / "raymb")[-1]
    flops = last["tflops_per_worker"] * 1e12 * last["step_seconds"]
    start = [
        json.loads(line) for line in (work / "raymb" / "metrics.jsonl").read_text().splitlines() if '"chip"' in line
    ]
    chip = start[0]["chip"] if start else plan["gpu"] or plan["backend"]
    gpu = gpu_named(chip) if plan["gpu"] else None
    tokens = plan["global_batch_size"] * plan["seq_length"] / plan["num_workers"]
    sizes = {"TP": "tensor", "PP": "pipeline", "CP": "context", "DP": "data"}
    layout = " x ".join(f"{short}{plan[f'{name}_parallel_size']}" for short, name in sizes.items())
    print(f"{datetime.now():%Y-%m-%d}, {plan['num_workers']} x {chip}, raymb's layout {layout}, micro batch "
          f"{plan['micro_batch_size']}\n`{flags}`\n")  # fmt: skip
    print("| | ms a step | tokens/s/GPU | TFLOP/s | MFU | peak GB | start, s | last loss |\n" + "|---" * 8 + "|")
    for side, one in results.items():
        rate = flops / one.step / 1e12
        mfu = f"{rate / gpu.tflops:.1%}" if gpu else "-"
        print(f"| {SIDES[side]} | {one.step * 1e3:.1f} | {tokens / one.step:,.0f} | {rate:.4g} | {mfu} | "
              f"{one.memory / 1e9:.1f} | {one.start:.1f} | {one.loss:.4f} |")  # fmt: skip
    for side, one in results.items():
        if side != "raymb":
            print(f"raymb against {SIDES[side]}: {one.step / results['raymb'].step:.3f} times as fast")


if __name__ == "__main__":
    main()

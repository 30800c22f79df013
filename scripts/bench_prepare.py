"""What scripts/bench-prepare runs."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PLAIN = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer

file, model, out, processes = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model)

def tokenize(batch):
    texts = [prompt + completion for prompt, completion in zip(batch["prompt"], batch["completion"])]
    return tokenizer(texts)

rows = load_dataset("json", data_files=file, split="train", cache_dir=out + "/cache")
rows.map(tokenize, batched=True, num_proc=int(processes), remove_columns=rows.column_names).save_to_disk(out + "/rows")
"""


def main() -> None:
    count, model = int(sys.argv[1]), sys.argv[2]
    if model == "sample":
        from raymb.model.sample import smollm2_directory

        model = str(smollm2_directory())
    home = Path(tempfile.mkdtemp(prefix="bench-prepare-"))
    try:
        file = home / "rows.jsonl"
        write_rows(file, count)
        cores = len(os.sched_getaffinity(0))
        print(f"{count:,} rows, {file.stat().st_size / 1e6:.0f} MB, {cores} cores")
        raymb = [sys.executable, "-m", "raymb", "data", "prepare", "--json", "--hf_model_path", model]
        raymb += ["--dataset", str(file), "--seq_length", "2048", "--storage_path", str(home / "raymb")]
        plain = [sys.executable, "-c", PLAIN, str(file), model, str(home / "plain"), str(cores)]
        results = [
            measured("raymb data prepare", raymb, count),
            measured("raymb data prepare --packing", [*raymb, "--packing"], count),
            measured("datasets.map", plain, count),
            measured("raymb data prepare again (reused)", raymb, count),
        ]
        for name, rate in results[:2]:
            print(f"{name} / datasets.map: {rate / results[2][1]:.2f}")
    finally:
        shutil.rmtree(home)


def write_rows(file: Path, count: int) -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("aeiounrstlmdgkp", k=chance.randint(2, 9))) for _ in range(5000)]
    text: Callable[[int, int], str] = lambda low, high: " ".join(chance.choices(words, k=chance.randint(low, high)))  # noqa: E731
    with open(file, "w") as stream:
        for _ in range(count):
            stream.write(json.dumps({"prompt": text(15, 60), "completion": " " + text(5, 60)}) + "\n")


def measured(name: str, command: list[str], count: int) -> tuple[str, float]:
    """(name, rows a second) of a command; prints them and the most memory that it and its children held at once."""
    start, most = time.monotonic(), [0]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    done = threading.Event()
    watcher = threading.Thread(target=watch, args=(psutil.Process(process.pid), most, done))
    watcher.start()
    out = process.communicate()[0]
    done.set()
    watcher.join()
    seconds = time.monotonic() - start
    assert process.returncode == 0, name
    numbers: Any = json.loads(out) if out.startswith("{") else {}
    kept = f", {numbers['rows']:,} rows to train on, {numbers['packing_efficiency']:.1%} full" if numbers else ""
    rate, memory = f"{count / seconds:10,.0f} rows/s", f"{most[0] / 2**30:6.2f} GiB resident"
    print(f"{name:<36}{seconds:7.1f} s {rate} {memory}{kept}", flush=True)
    return name, count / seconds


def watch(process: psutil.Process, most: list[int], done: threading.Event) -> None:
    while not done.wait(0.2):
        try:
            family = [process, *process.children(recursive=True)]
            held = sum(getattr(member.memory_full_info(), "pss", 0) for member in family)
        except psutil.Error:
            continue
        most[0] = max(most[0], held)


main()

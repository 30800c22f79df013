"""Run directories made by the code that writes them in a run, without the training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from raymb.errors import EXIT_OK
from raymb.model.shape import read_model_shape
from raymb.plan import make_plan
from raymb.run import directory as run_dir
from raymb.run.directory import RunDir
from raymb.spec import load_spec
from raymb.storage.files import write_atomically
from raymb.telemetry.events import Events, state_after
from raymb.telemetry.failures import Failures
from raymb.telemetry.sinks import JsonLines

BEGAN = 1.7e9  # Unix time
EVIL = '<script>window.hacked = true</script><img src="http://example.com/x.png" onerror="window.hacked = true">'
DATA: dict[str, Any] = {
    "sources": [{"dataset": "rows.jsonl", "rows": 112, "used": 110}],
    "notes": ["2 rows are longer than 64 tokens and were cut"],
    "parts": {
        "train": {
            "rows": 96,
            "packed_rows": 96,
            "packing_efficiency": 0.13,
            "tokens": 806,
            "trained_tokens": 402,
            "shortest": 4,
            "longest": 17,
            "length_histogram": {"edges": [4.0, 10.5, 17.0], "rows": [60, 36]},
        }
    },
}


class MadeRun:
    """A run directory that grows as its methods are called. Time passes with the steps: a second each."""

    def __init__(self, storage: Path, model: Path, name: str = "run", **flags: str):
        given = {"hf_model_path": str(model), "storage_path": str(storage), "experiment_name": name}
        flags = {"backend": "cpu", **flags}
        self.spec = load_spec({**given, "train_iters": "40", "num_workers": "2", **flags})
        self.place = RunDir.of(self.spec, "")
        plan = make_plan(self.spec, read_model_shape(str(model), None), rows=96, backend=flags["backend"]).to_dict()
        run_dir.claim(self.place, self.spec, plan, {})
        write_atomically(self.place.data, json.dumps(DATA))
        self.metrics, self.now = JsonLines(self.place.metrics), BEGAN
        self.losses: dict[int, float] = {}
        self.chip = "AMD EPYC" if flags["backend"] == "cpu" else "NVIDIA H200"

    @property
    def path(self) -> Path:
        return self.place.path

    def event(self, event: str, **fields: Any) -> None:
        """A line of events.jsonl at this run's own time."""
        Events(self.place.events).add(event, **fields)
        *before, last = self.place.events.read_text().splitlines()
        lines = [*before, json.dumps({**json.loads(last), "time": self.now})]
        self.place.events.write_text("".join(f"{line}\n" for line in lines))

    def start(self, step: int = 0, workers: int = 2) -> None:
        self.event("started")
        self.train_again(step, workers)

    def train_again(self, step: int, workers: int = 2) -> None:
        self.now += 10
        self.event("training", step=step, workers=workers, chip=self.chip, nodes=1 + workers // 8)
        self.metrics.restart_after(step)

    def steps(self, steps: range, **losses: float) -> None:
        """Train; `s7=math.nan` makes step 7's loss that."""
        for step in steps:
            self.now += 1
            loss = losses.get(f"s{step}", 1 + 5 * math.exp(-step / 30) + 0.1 * math.sin(step))
            self.losses[step] = loss
            self.metrics.write(
                {
                    "kind": "train",
                    "step": step,
                    "time": self.now,
                    "loss": loss,
                    "grad_norm": 1.5 + math.cos(step),
                    "learning_rate": 1e-3 * (1 - step / (steps[-1] + 1)),
                    "step_seconds": 1.0,
                    "tokens": 512,
                    "trained_tokens": 80 + step % 40,
                    "tokens_per_second": 512.0,
                    "tokens_per_second_per_worker": 256.0,
                    "samples": 8,
                    "tflops_per_worker": 0.1,
                    "memory_bytes": 3 * 2**30,
                }
            )
            if step % 10 == 0:
                self.metrics.write({"kind": "validation", "step": step, "time": self.now, "loss": loss + 0.2})

    def fail(self, step: int, what: str = "RuntimeError: lost") -> None:
        failures = Failures(self.place.failures, self.place.logs)
        failures.heard({"kind": "rank", "rank": 1, "node": "here", "in": "step", "step": step})
        record = {"time": self.now, "rank": 1, "text": what, "died": False, "workers": {"1": what}, "restarts": True}
        failure = failures.failed({**record, "failures": 1, "max_failures": 3, "why": ""})
        fields = {"number": failure.number, "step": failure.reached, "rank": 1, "what": failure.what}
        self.event("failure", **fields, restarts=True)

    def answer(self, prompt: str, **said: str) -> None:
        self.place.answers.write_text(json.dumps({"prompt": prompt, **said}) + "\n")

    def end(self, code: int = EXIT_OK) -> None:
        self.event("ended", code=code, state=state_after(code))
        run_dir.release(self.place)


def eventful_run(storage: Path, model: Path, name: str = "run", **flags: str) -> MadeRun:
    """40 steps with a NaN, a failure after step 25, a driver that was interrupted after step 30, and texts that want to
    be code."""
    run = MadeRun(storage, model, name, **flags)
    run.start()
    run.steps(range(1, 26))
    run.fail(25, f"RuntimeError: {EVIL}")
    run.train_again(20)
    run.steps(range(21, 31), s23=math.nan)
    run.event("ended", code=130, state="interrupted")
    run.now += 86400
    run.start(30)
    run.steps(range(31, 41))
    run.answer(f"What is {EVIL}?", base=EVIL, tuned="A script.")
    run.end()
    return run

"""Real runs whose workers run out of GPU memory, as far as CPU workers can: torch's error is raised at the first step.
The layouts are those for GPUs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymb import launch
from raymb.plan import memory, usable_plans
from raymb.plan.gpus import gpu_named
from raymb.plan.smaller import SHARE
from raymb.telemetry.events import read_lines
from tests.smoke.conftest import read_metrics

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(600)]
SMALL = replace(gpu_named("h100-80gb"), memory=64 << 20)
AUTOMATIC: dict[str, Any] = {"num_workers": 2, "micro_batch_size": "auto", "train_iters": 2, "export_hf": False}
FIRST = {"do": "memory", "phase": "step", "step": 0, "rank": 1}


@pytest.fixture(autouse=True)
def gpus_to_plan_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU workers have the layouts of GPUs that are as small as the model; else all of a GPU is CUDA's context."""
    monkeypatch.setattr(memory, "_CONTEXT", 0)
    monkeypatch.setattr(memory, "_CHANNELS", 0)

    def on_small_gpus(*given: Any, rows: int, backend: str, gpu: Any) -> Any:
        return usable_plans(*given, rows=rows, backend="cuda", gpu=gpu or SMALL)

    monkeypatch.setattr(launch, "usable_plans", on_small_gpus)


def in_file(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_an_automatic_layout_gives_way_to_the_next_one_and_a_resumed_run_keeps_that(
    finetune_with_faults: Callable[..., Path], finetune: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune_with_faults(FIRST, **AUTOMATIC)
    said = capsys.readouterr().err
    (line,) = [one for one in said.splitlines() if "ran out of GPU memory" in one]
    assert line.startswith("TP2, micro batch 8, CUDA graphs was chosen automatically and ran out of GPU memory")
    assert "starting once more with TP2, micro batch 4, CUDA graphs, " in line
    assert "give up: it would come again with this layout" in said

    spec, plan, job = (in_file(run, f"{name}.json") for name in ("spec", "plan", "job"))
    sizes = ("tensor_parallel_size", "pipeline_parallel_size", "micro_batch_size")
    assert [plan[size] for size in sizes] == [job["plan"][size] for size in sizes] == [2, 1, 4]
    assert job["spec"] == spec and (spec["train"]["micro_batch_size"], spec["parallel"]["tensor_parallel_size"]) == (
        4,
        2,
    )
    assert plan["gpu_memory"] < SMALL.memory * SHARE
    events = read_lines(run / "events.jsonl")
    assert [one["event"] for one in events if one["event"] != "checkpoint"] == [
        *("started", "training", "failure", "layout", "started", "training", "ended")
    ]
    assert [one["step"] for one in read_metrics(run)] == [1, 2]

    finetune(**AUTOMATIC | {"train_iters": 3})
    said = capsys.readouterr().err
    assert "chosen for 0.0 GiB, as another layout ran out" in said and "resharding" not in said
    assert in_file(run, "plan.json")["micro_batch_size"] == 4
    assert [one["step"] for one in read_metrics(run)] == [1, 2, 3]


@pytest.mark.slow
def test_the_next_layout_is_the_last_one(
    finetune_with_faults: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune_with_faults(FIRST, FIRST | {"after": 0}, **AUTOMATIC, code=1)
    said = capsys.readouterr().err
    assert said.count("starting once more with") == 1
    assert "error: worker 1 failed: OutOfMemoryError: CUDA out of memory." in said
    assert [one["event"] for one in read_lines(run / "events.jsonl")].count("started") == 2
    assert in_file(run, "job.json")["plan"]["micro_batch_size"] == 4


@pytest.mark.slow
def test_a_layout_that_the_user_has_given_is_not_changed(
    finetune_with_faults: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 1, "micro_batch_size": 8, "recompute": "none"}
    given = {**sizes, "optimizer_offload": 0, "cuda_graphs": False}
    run = finetune_with_faults(FIRST, **AUTOMATIC | given, code=1)
    assert "starting once more" not in capsys.readouterr().err
    assert [one["event"] for one in read_lines(run / "events.jsonl")] == ["started", "training", "failure", "ended"]

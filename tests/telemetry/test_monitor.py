"""The driver's side: records in, files and terminal lines out, with a real hub."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError
from rich.console import Console

from raymb.run.directory import RunDir
from raymb.spec import load_spec
from raymb.storage import lock
from raymb.telemetry import hub
from raymb.telemetry.events import read_lines
from raymb.telemetry.monitor import Monitor


class Driver:
    def __init__(self, tmp_path: Path, hub: Any):
        flags = {"hf_model_path": "some/model", "storage_path": str(tmp_path), "experiment_name": "run"}
        spec = load_spec({**flags, "global_batch_size": "8"})
        self.place = RunDir.of(spec, "")
        self.place.logs.mkdir(parents=True)
        self.hub, self.screen, self.told = hub, io.StringIO(), 0
        layout = SimpleNamespace(data_parallel_size=2, num_workers=2)
        job: Any = SimpleNamespace(spec=spec, layout=layout, train_iters=40, backend="cpu", task="train")
        self.lost = threading.Event()
        self.monitor = Monitor(self.hub, job, self.place, Console(file=self.screen, width=200), self.lost)

    def hear(self, *records: dict[str, Any]) -> str:
        """What the terminal shows more when these records have come."""
        shown = len(self.screen.getvalue())
        ray.get(self.hub.push.remote(list(records)))
        self.told += len(records)
        deadline = time.monotonic() + 60
        while ray.get(self.hub.__ray_call__.remote(lambda hub: hub.delivered)) < self.told:  # it has handled them then
            assert time.monotonic() < deadline
        return self.screen.getvalue()[shown:]

    def asked(self) -> str:
        """What the ranks are asked to do."""
        return ray.get(self.hub.wanted.remote())

    def metrics(self) -> list[tuple[str, int, float]]:
        lines = self.place.metrics.read_text().splitlines()
        return [(line["kind"], line["step"], line["loss"]) for line in map(json.loads, lines)]


@pytest.fixture
def driver(tmp_path: Path, new_hub: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    monkeypatch.setattr(hub, "_SECONDS_BETWEEN_SENDS", 0.01)
    driver = Driver(tmp_path, new_hub)
    yield driver
    driver.monitor.close()


def _start(step: int = 0, copies: int = 2, workers: int = 2) -> dict[str, Any]:
    return {"kind": "start", "step": step, "chip": "cpu", "copies": copies, "world_size": workers}


def _parts(step: int, loss: float, copies: int = 2) -> list[dict[str, Any]]:
    known = {"loss": loss, "grad_norm": 0.5, "learning_rate": 1e-5, "step_seconds": 2.0, "tflops_per_worker": 1.0}
    counted = {"kind": "part", "step": step, "tokens": 100, "trained_tokens": 50, "memory_bytes": 1000}
    return [{**counted, "copy": copy, **({"time": 7.0, **known} if copy == 0 else {})} for copy in range(copies)]


def _failure(**more: Any) -> dict[str, Any]:
    text = "RuntimeError: [/pytorch/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:5"
    said = {"kind": "failure", "time": 1700000000.0, "rank": 1, "text": text, "died": False, "workers": {"1": text}}
    return {**said, "restarts": True, "why": "", "failures": 1, "max_failures": 3, **more}


def _status(rank: int, step: int) -> dict[str, Any]:
    return {"kind": "rank", "rank": rank, "node": "here", "in": "step", "step": step}


def test_steps_and_validations_are_written_and_shown(driver: Driver) -> None:
    text = driver.hear(_start(), *_parts(1, 2.0), {"kind": "validation", "step": 1, "loss": 1.5}, *_parts(2, 1.75))
    assert driver.metrics() == [("train", 1, 2.0), ("validation", 1, 1.5), ("train", 2, 1.75)]
    assert "training with 2 workers" in text and "step 1/40  loss 2.0000" in text
    assert "validation at step 1: loss 1.5000" in text
    assert "checkpoint at step 10" in driver.hear({"kind": "checkpoint", "step": 10})


def test_a_failure_has_a_page_and_steps_that_are_done_again_stand_once(driver: Driver) -> None:
    driver.hear(_start(), *_parts(1, 2.0), *_parts(2, 1.75), *_parts(3, 1.5), *(_status(rank, 3) for rank in range(2)))
    text = driver.hear(_failure())
    page = driver.place.failures / "1.md"
    assert "failure 1: rank 1 on here, step 4: RuntimeError: [/pytorch/gloo/pair.cc:547] Connection closed" in text
    assert f"  page           {page}" in text.splitlines() and page.exists()
    text = driver.hear(_start(2), *_parts(3, 1.25))
    assert "  resumed        from step 2 after 0 s, 1 steps to do again" in text.splitlines()
    assert "training from step 2 with 2 workers" in text
    assert "| steps lost | 1 |" in page.read_text()
    assert driver.metrics() == [("train", 1, 2.0), ("train", 2, 1.75), ("train", 3, 1.25)]
    assert "resumed" not in driver.hear(_start(3)), "told once"


def test_starts_failures_checkpoints_and_the_end_are_recorded(driver: Driver) -> None:
    statuses = [_status(rank, 3) for rank in range(2)]
    driver.hear(*statuses, _start(), *_parts(1, 2.0), {"kind": "checkpoint", "step": 1})
    driver.hear(_failure(), statuses[0], _start(1))  # of rank 1's node nothing is known yet
    driver.monitor.end(75)
    events = read_lines(driver.place.events)
    assert all(abs(event.pop("time") - time.time()) < 60 for event in events)
    what = "RuntimeError: [/pytorch/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:5"
    assert events == [
        {"event": "started"},
        {"event": "training", "step": 0, "workers": 2, "chip": "cpu", "nodes": 1},
        {"event": "checkpoint", "step": 1},
        {"event": "failure", "number": 1, "step": 3, "rank": 1, "what": what, "restarts": True},
        {"event": "training", "step": 1, "workers": 2, "chip": "cpu"},
        {"event": "ended", "code": 75, "state": "stopped"},
    ]


def test_after_a_resize_a_step_has_as_many_parts_as_there_are_copies_now(driver: Driver) -> None:
    driver.hear(_start(), *_parts(1, 2.0)[:1])
    driver.hear(_start(0, copies=3, workers=6), *_parts(1, 1.5, copies=3), *_parts(2, 1.25, copies=3)[:2])
    assert driver.metrics() == [("train", 1, 1.5)]
    line = json.loads(driver.place.metrics.read_text())
    assert (line["tokens"], line["tokens_per_second_per_worker"]) == (300, 25.0)


def test_a_hang_is_on_the_page(driver: Driver) -> None:
    driver.hear(_start(), _status(0, 7), {"kind": "hang", "rank": 0, "in": "step 8", "others": {1: "stopped"}})
    assert "no progress in step 8 (its process is stopped)" in driver.hear(_failure(rank=0, died=True))


def test_workers_are_asked_to_stop_and_waited_for_while_they_train(driver: Driver) -> None:
    assert not driver.monitor.ask_to_stop("interrupted"), "they do not train yet; the wish is kept for them"
    assert driver.asked() == "interrupted"
    driver.hear(_start())
    assert driver.monitor.ask_to_stop("time") and driver.asked() == "time"
    assert "time: asking the workers for a last checkpoint" in driver.screen.getvalue()
    driver.hear(_failure())
    assert not driver.monitor.ask_to_stop("interrupted"), "they are being started again"
    assert driver.asked() == "interrupted"
    assert driver.screen.getvalue().count("asking the workers") == 1


def test_a_hub_that_does_not_answer_keeps_no_driver_waiting(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(reference: Any, timeout: float) -> None:
        raise GetTimeoutError

    driver.hear(_start())
    monkeypatch.setattr(hub.ray, "get", late)
    assert driver.monitor.ask_to_stop("interrupted")


def test_the_lock_is_kept_alive(driver: Driver) -> None:
    driver.monitor.touched = time.monotonic()
    assert lock.take(driver.place.lock)
    os.utime(driver.place.lock, (1, 1))
    driver.hear({"kind": "phase", "text": "loading"})
    assert driver.place.lock.stat().st_mtime == 1, "not several times a second"
    driver.monitor.touched -= 60
    driver.hear({"kind": "phase", "text": "loading"})
    assert driver.place.lock.stat().st_mtime > time.time() - 60


def test_a_run_that_was_taken_over_is_noticed_and_its_lock_left_alone(driver: Driver) -> None:
    """On shared storage: this driver was frozen for a minute."""
    assert lock.take(driver.place.lock)
    driver.monitor.touched -= 60
    driver.hear(_start())
    assert not driver.lost.is_set()
    driver.place.lock.write_text("another-host 1 1\n")
    os.utime(driver.place.lock, (1, 1))
    driver.monitor.touched -= 60
    driver.hear({"kind": "phase", "text": "loading"})
    assert driver.lost.is_set() and driver.asked() == "", "they must not write a checkpoint any more"
    assert driver.place.lock.stat().st_mtime == 1


def test_a_warning_is_shown(driver: Driver) -> None:
    assert "warning: no checkpoint at step 5: [Errno 28] No space" in driver.hear(
        {"kind": "warning", "text": "no checkpoint at step 5: [Errno 28] No space left on device"}
    )


@pytest.mark.parametrize(
    "text", ["no checkpoint: [/pytorch/gloo/pair.cc:547] closed", "/runs/[a]/iter_0000010 is not whole"]
)
def test_a_text_in_brackets_is_no_markup(driver: Driver, text: str) -> None:
    assert f"warning: {text}" in driver.hear({"kind": "warning", "text": text})


def test_a_page_that_cannot_be_written_silences_nobody(driver: Driver) -> None:
    driver.hear(_start(), *_parts(1, 2.0), *(_status(rank, 1) for rank in range(2)))
    driver.place.failures.write_text("a file where the pages should go")
    text = driver.hear(_failure())
    assert "failure 1: rank 1 on here, step 2: RuntimeError: [/pytorch/gloo/pair.cc:547] Connection closed" in text
    assert "  page           could not be written: [Errno 17] File exists" in text
    driver.hear(_start(1), *_parts(2, 1.75))
    assert "failure 2: " in driver.hear(_failure())
    events = [(event["event"], event.get("number")) for event in read_lines(driver.place.events)]
    assert events == [("started", None), ("training", None), ("failure", 1), ("training", None), ("failure", 2)]
    driver.place.failures.unlink()
    driver.hear(_start(2))
    assert "| steps lost | 0 |" in (driver.place.failures / "2.md").read_text(), "there is room again"
    assert "failure 3: " in driver.hear(_failure()) and (driver.place.failures / "3.md").exists()


def test_a_place_that_takes_no_metrics_keeps_none_from_the_others(driver: Driver) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    driver.place.metrics.mkdir()  # cannot be opened as a file
    text = driver.hear(_start(), *_parts(1, 2.0), *_parts(2, 1.75), {"kind": "validation", "step": 2, "loss": 1.5})
    assert text.count("warning: metrics.jsonl is incomplete from here on: IsADirectoryError") == 1
    assert "step 1/40  loss 2.0000" in text and "validation at step 2" in text
    driver.monitor.close()
    curves = EventAccumulator(str(driver.place.tensorboard)).Reload()
    assert [(one.step, one.value) for one in curves.Scalars("train/loss")] == [(1, 2.0), (2, 1.75)]

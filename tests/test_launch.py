"""What the driver asks a cluster for before the workers start, and with what it ends."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import WorkerGroupError
from rich.console import Console

from raymb import launch
from raymb.checkpoints.manifest import describe_files, iteration_dir, write_manifest
from raymb.driver import cluster
from raymb.driver.cluster import Cluster
from raymb.driver.resources import Request
from raymb.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, RunFailed
from raymb.run.directory import RunDir
from raymb.spec import load_spec


def test_an_elastic_run_waits_for_its_smallest_size_with_shares_of_its_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else workers that are started first would leave no CPU to those that are to come."""
    waited: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(launch, "wait_for", lambda *given: waited.append(given))
    spec = load_spec({"hf_model_path": "m", "num_workers": "2:8", "wait_for_resources": 5})
    plan: Any = SimpleNamespace(layout=SimpleNamespace(tensor_parallel_size=2))
    resources, _ = launch._reserved(Cluster(joined=True), "cpu", [8, 2, 4], plan, spec, Console())
    assert resources.cpus == 0.5
    assert [given[:2] for given in waited] == [(Request({"CPU": 0.5}, [2, 4, 8], 2, "pack"), 5.0)]


class Run:
    """A driver's last part around workers that do what a test says: real signals, real checkpoints."""

    def __init__(self, tmp_path: Path, **flags: str):
        given = {"hf_model_path": "m", "storage_path": str(tmp_path), "experiment_name": "run", "export_hf": "false"}
        spec = load_spec({**given, **flags})
        self.place = RunDir.of(spec, "")
        self.place.logs.mkdir(parents=True)
        self.job: Any = SimpleNamespace(spec=spec, train_iters=40)
        self.said, self.asked = io.StringIO(), []
        self.monitor: Any = SimpleNamespace(
            lost=threading.Event(), close=lambda: None, ask_to_stop=self._ask, seconds_of_a_save=0.0
        )

    def _ask(self, reason: str) -> bool:
        self.asked.append(reason)
        return True

    def saves(self, step: int, **state: Any) -> None:
        directory = Path(iteration_dir(self.place.checkpoints, step))
        directory.mkdir(parents=True)
        (directory / "common.pt").write_bytes(b"state")
        write_manifest(directory, describe_files(directory.iterdir()), {"step": step, **state})

    def ends(self, *does: Callable[[], Any]) -> int:
        """The exit code where workers do this."""

        def fit() -> Any:
            before = signal.signal(signal.SIGINT, _rays_handler)
            for one in does:
                one()
            signal.signal(signal.SIGINT, before)
            return SimpleNamespace(error=None, return_value=None)

        trainer: Any = SimpleNamespace(fit=fit)
        console = Console(file=self.said, width=300)
        return launch._trained(self.job, trainer, self.place, console, time.monotonic(), self.monitor)


def _rays_handler(number: int, frame: Any) -> None:
    sys.exit(0)


def _ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def _a_worker_fails() -> None:
    raise WorkerGroupError("failed", {1: ValueError("bad rows")})


@pytest.mark.filterwarnings("ignore")
def test_a_failure_after_ctrl_c_is_a_failure(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(RunFailed, match="worker 1 failed: ValueError: bad rows"):
        run.ends(_ctrl_c, _a_worker_fails)
    assert run.asked == ["interrupted"]


def test_a_run_that_comes_to_its_end_after_ctrl_c_has_finished(tmp_path: Path) -> None:
    """Asked for after the last step, while the export is being written."""
    run = Run(tmp_path)
    assert run.ends(_ctrl_c, lambda: run.saves(40)) == EXIT_OK
    assert "interrupted" not in run.said.getvalue()


def test_early_stopping_is_an_end_after_ctrl_c_and_after_max_time(tmp_path: Path) -> None:
    losses = [[10, 2.0], [20, 1.5], [30, 1.75]]
    run = Run(tmp_path, early_stopping_patience="1", eval_interval="10", max_time="0.01s")
    run.saves(30, validation_losses=losses)
    assert run.ends(_ctrl_c, lambda: time.sleep(0.3)) == EXIT_OK
    assert run.asked == ["interrupted", "time"] and "stopped early at step 30" in run.said.getvalue()


def test_ctrl_c_with_a_last_checkpoint_is_an_interruption(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.ends(_ctrl_c, lambda: run.saves(20)) == EXIT_INTERRUPTED
    assert "interrupted; the same command resumes from step 20" in run.said.getvalue()


def test_a_second_ctrl_c_is_an_interruption_too(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.ends(_ctrl_c, _ctrl_c) == EXIT_INTERRUPTED


def test_max_time_ends_with_its_own_code(tmp_path: Path) -> None:
    run = Run(tmp_path, max_time="0.01s")
    run.saves(20)
    assert run.ends(lambda: time.sleep(0.3)) == EXIT_STOPPED


def test_a_run_that_another_driver_has_taken_over_ends_its_workers_and_fails(tmp_path: Path) -> None:
    """It asked them for a last checkpoint, wrote on, and ended with 0."""
    run = Run(tmp_path)
    with pytest.raises(RunFailed, match="another driver has taken"):
        run.ends(run.monitor.lost.set, lambda: time.sleep(20))
    assert run.asked == [], "no last checkpoint"

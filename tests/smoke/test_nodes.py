"""Several nodes on one machine (Ray's own cluster utilities): nodes go and come, and runs shrink and grow with them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault_table import Row
from tests.smoke.conftest import MAIN_FLAGS, read_metrics, words_of, worst_deviation
from tests.smoke.ray_nodes import RayNodes
from tests.smoke.test_faults import page

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(1500)]
FAST = """
from raymb.driver import trainer
from raymb.cli import main

trainer.SECONDS_BETWEEN_RESIZES = 3
raise SystemExit(main())
"""


@pytest.fixture
def cluster() -> Iterator[RayNodes]:
    """A head that runs no workers."""
    nodes = RayNodes(0)
    yield nodes
    nodes.close()


@pytest.fixture
def started(
    cluster: RayNodes, tiny_qwen2: Path, rows: Path, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes = []

    def start(address: str | None, name: str, **flags: Any) -> subprocess.Popen[str]:
        given = {**MAIN_FLAGS, "hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": tmp_path, **flags}
        given |= {"ray_address": address or "local"}
        words = [
            *words_of(given),
            "--experiment_name",
            name,
            "--no_export_hf",
        ]
        process = subprocess.Popen(
            [sys.executable, "-c", FAST, "finetune", *words],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **cluster.authentication, "PYTHONPATH": "src"},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 500
    while not (run / "metrics.jsonl").exists() or (read_metrics(run) or [{"step": 0}])[-1]["step"] < step:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()
        time.sleep(0.2)


def sizes(error: str) -> list[int]:
    """Workers of each start, from the workers' tokens."""
    return [int(found) for found in re.findall(r"training.* with (\d+) workers", error)]


def test_a_run_shrinks_and_grows(
    cluster: RayNodes, started: Callable[..., subprocess.Popen[str]], tmp_path: Path, fault_table: list[Row]
) -> None:
    """4 workers, 2 when a node goes, 4 when one comes: the same curve as 4 undisturbed ones."""
    flags = {"tensor_parallel_size": 2, "train_iters": 100, "save_interval": 20, "cpus_per_worker": 1}
    whole = started(None, "whole", **{**flags, "num_workers": 4, "cpus_per_worker": 0.25})
    assert whole.wait(timeout=600) == 0
    cluster.add(2)
    goes = cluster.add(2)
    process = started(cluster.address, "elastic", **flags, num_workers="2:4")
    run = tmp_path / "elastic"
    wait_for_step(run, 25, process)
    cluster.kill(goes)
    while not (pages := _pages(run)) or pages[0]["resumed from"] == "-":
        assert process.poll() is None
        time.sleep(0.2)
    cluster.add(2)
    error = process.communicate(timeout=600)[1]
    print(error)
    assert process.returncode == 0, error
    assert sizes(error) == [4, 2, 4]
    ours, theirs = read_metrics(run), read_metrics(tmp_path / "whole")
    assert [record["step"] for record in ours] == list(range(1, 101))
    worst = worst_deviation(ours, theirs)
    print("worst deviation", worst)
    assert worst < 1e-3
    first, second = pages[0], _pages(run)[-1]
    assert int(first["steps lost"]) <= 20 + 5
    assert "for resize" in second["what"] and second["steps lost"] == "0"
    fault_table.append(
        Row(
            "elastic, TP 2: 4 workers, a node goes, 2 workers",
            f"resumes; whole curve within {worst:.1e} of 4 workers",
            first["seconds to training again"],
            first["steps lost"],
        )
    )
    fault_table.append(
        Row(
            "elastic, TP 2: 2 workers, a node comes, 4 workers",
            "resumes, checkpoint first",
            second["seconds to training again"],
            second["steps lost"],
        )
    )


def _pages(run: Path) -> list[dict[str, str]]:
    return [page(run, number) for number in range(1, 1 + len(list((run / "failures").glob("*.md"))))]


def test_a_node_goes(
    cluster: RayNodes, started: Callable[..., subprocess.Popen[str]], tmp_path: Path, fault_table: list[Row]
) -> None:
    """A fixed size: the workers start again on another node."""
    nodes = [cluster.add(2), cluster.add(2)]
    process = started(cluster.address, "run", num_workers=2, train_iters=100, save_interval=10, cpus_per_worker=1)
    run = tmp_path / "run"
    wait_for_step(run, 15, process)
    cluster.kill(_node_of_workers(nodes))
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error
    assert [record["step"] for record in read_metrics(run)] == list(range(1, 101))
    found = page(run, 1)
    fault_table.append(
        Row("a node removed, another one free", "finishes", found["seconds to training again"], found["steps lost"])
    )


def _node_of_workers(nodes: list[str]) -> str:
    script = (
        "import ray, sys; ray.init(log_to_driver=False, logging_level=40);"
        "from ray._private.state import available_resources_per_node as free;"
        "print(min(sys.argv[1:], key=lambda node: free().get(node, {}).get('CPU', 0)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *nodes], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]

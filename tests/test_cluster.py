"""What a worker gets of a cluster, and what is said when the cluster has too little. No cluster is started."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raymb import cluster as cluster_module
from raymb.cluster import Cluster, Resources, wait_for
from raymb.errors import ClusterError


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The cluster's resources, for a test to set."""
    resources: dict[str, float] = {"CPU": 8.0}
    monkeypatch.setattr(cluster_module.ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(cluster_module, "_ask_autoscaler", lambda bundles: None)
    return resources


CLUSTER = Cluster(joined=False)


@pytest.mark.parametrize(
    ("asked", "gpus", "backend"), [("auto", 0, "cpu"), ("auto", 4, "cuda"), ("cpu", 4, "cpu"), ("cuda", 0, "cuda")]
)
def test_backend(have: dict[str, float], asked: str, gpus: int, backend: str) -> None:
    have["GPU"] = gpus
    assert CLUSTER.backend(asked) == backend


@pytest.mark.parametrize(
    ("cpus_there", "num_workers", "cpus", "threads"),
    [(8, 1, 1.0, 8), (8, 2, 1.0, 4), (8, 8, 1.0, 1), (2, 4, 0.5, 1), (2, 8, 0.25, 1), (2, 3, 0.66, 1), (16, 3, 1.0, 5)],
)
def test_cpu_workers_share_the_cpus(
    have: dict[str, float], cpus_there: float, num_workers: int, cpus: float, threads: int
) -> None:
    have["CPU"] = cpus_there
    got = CLUSTER.resources_of_a_worker("cpu", "auto", num_workers)
    assert got == Resources(cpus, 0, threads)
    assert got.cpus * num_workers <= cpus_there  # so that they all start
    assert got.to_dict() == {"CPU": cpus}


def test_asked_cpus_are_honoured(have: dict[str, float]) -> None:
    assert CLUSTER.resources_of_a_worker("cpu", 3.0, 2) == Resources(3.0, 0, 4)
    assert CLUSTER.resources_of_a_worker("cuda", 3.0, 2) == Resources(3.0, 1, 1)


def test_a_cuda_worker_gets_one_gpu(have: dict[str, float]) -> None:
    got = CLUSTER.resources_of_a_worker("cuda", "auto", 8)
    assert got == Resources(1.0, 1, 1)
    assert got.to_dict() == {"CPU": 1.0, "GPU": 1}


def test_enough_is_taken_at_once(have: dict[str, float]) -> None:
    have |= {"CPU": 1.98}
    wait_for(Resources(0.66, 0, 1), 3, 0, Console(file=io.StringIO()))


@pytest.mark.parametrize(
    ("worker", "num_workers", "text"),
    [
        (Resources(1.0, 1, 1), 4, "4 GPUs asked (1 for each worker), 0 there"),
        (Resources(3.0, 0, 1), 4, "12 CPUs asked (3 for each worker), 8 there"),
        (
            Resources(4.0, 1, 1),
            4,
            "16 CPUs asked (4 for each worker), 8 there, 4 GPUs asked (1 for each worker), 0 there",
        ),
        (Resources(0.5, 0, 1), 16, ""),
        (Resources(1.0, 0, 1), 8, ""),
    ],
)
def test_what_is_missing(have: dict[str, float], worker: Resources, num_workers: int, text: str) -> None:
    assert cluster_module._missing(worker, num_workers) == text


def test_too_little_is_refused_with_flags(have: dict[str, float]) -> None:
    with pytest.raises(ClusterError, match="too little for 4 workers: 4 GPUs asked") as caught:
        wait_for(Resources(1.0, 1, 1), 4, 0.0, Console(file=io.StringIO()))
    for flag in ("--num_workers", "--cpus_per_worker", "--wait_for_resources"):
        assert flag in caught.value.hint


def test_waiting_ends_when_the_cluster_grows(have: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(cluster_module, "_ask_autoscaler", asked.append)

    def sleep(seconds: float) -> None:
        have["GPU"] = have.get("GPU", 0) + 1

    monkeypatch.setattr(cluster_module.time, "sleep", sleep)
    wait_for(Resources(1.0, 1, 1), 2, 60.0, Console(file=io.StringIO()))
    assert have["GPU"] == 2
    assert asked == [[{"CPU": 1.0, "GPU": 1}] * 2, []]  # asked for once, and given back


@pytest.mark.parametrize(
    ("kinds", "name"), [(["H100"], "h100-80gb"), (["L4"], "l4"), ([], None), (["H100", "L4"], None), (["TPU-v4"], None)]
)
def test_the_gpus_of_a_cluster(have: dict[str, float], kinds: list[str], name: str | None) -> None:
    have.update({f"accelerator_type:{kind}": 1.0 for kind in kinds})
    gpu = Cluster(joined=True).gpu()
    assert (gpu and gpu.name) == name


@pytest.mark.parametrize(
    ("backend", "installed", "text"),
    [
        ("cpu", True, "--profiler nsys records GPUs, and the workers are CPU workers"),
        ("cuda", False, "--profiler nsys: there is no nsys on PATH"),
        ("cuda", True, None),
    ],
)
def test_nsys_is_asked_for_before_workers_start(
    backend: str, installed: bool, text: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if installed:
        (tmp_path / "nsys").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cluster = Cluster(joined=False)
    cluster.check_profiler("torch", backend)
    if text is None:
        cluster.check_profiler("nsys", backend)
        return
    with pytest.raises(ClusterError, match=text) as caught:
        cluster.check_profiler("nsys", backend)
    assert "--profiler torch" in caught.value.hint

"""What a worker gets of a cluster, and what is said when the cluster has too little. No cluster is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from raymb.driver import cluster as cluster_module
from raymb.driver.cluster import Cluster, Resources
from raymb.driver.host_memory import memory_of_this_machine
from raymb.errors import ClusterError
from raymb.plan.gpus import gpu_named


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The cluster's resources, for a test to set."""
    resources: dict[str, float] = {"CPU": 8.0}
    monkeypatch.setattr(cluster_module.ray, "cluster_resources", lambda: resources)
    return resources


CLUSTER = Cluster(joined=False)


@pytest.mark.parametrize(
    ("joined", "asked", "gpus", "backend"),
    [
        (False, "auto", 0, "cpu"),
        (False, "auto", 4, "cuda"),
        (False, "cpu", 4, "cpu"),
        (False, "cuda", 0, "cuda"),
        (True, "auto", 0, "cuda"),  # its GPU nodes may have yet to start
        (True, "auto", 4, "cuda"),
        (True, "cpu", 4, "cpu"),
    ],
)
def test_backend(have: dict[str, float], joined: bool, asked: str, gpus: int, backend: str) -> None:
    have["GPU"] = gpus
    assert Cluster(joined).backend(asked) == backend


def _nodes(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    found = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(cluster_module.ray, "nodes", lambda: found)


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([{"CPU": 0.0}, {"GPU": 4.0, "accelerator_type:L4": 1.0}, {"GPU": 4.0, "accelerator_type:L4": 1.0}], "8 x L4"),
        ([{"GPU": 4.0, "accelerator_type:L4": 1.0}, {"GPU": 8.0}, {}], "4 x L4, 8 GPUs"),
        ([{"CPU": 4.0}, {"CPU": 4.0}, {}], "8 CPUs, no GPUs"),
    ],
)
def test_a_cluster_that_is_joined_is_described(
    have: dict[str, float], monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], said: str
) -> None:
    _nodes(monkeypatch, *nodes)
    context = type("Context", (), {"gcs_address": "10.0.0.5:6379"})
    monkeypatch.setattr(cluster_module.ray, "get_runtime_context", context)
    assert Cluster(joined=True).described() == f"joined the Ray cluster at 10.0.0.5:6379: 3 nodes, {said}"


def test_workers_of_a_cluster_whose_nodes_have_yet_to_start_get_a_cpu_each(have: dict[str, float]) -> None:
    have.clear()
    assert Cluster(joined=True).resources_of_a_worker("cpu", "auto", 8) == Resources(1.0, 0, 1)


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


@pytest.mark.parametrize(
    ("kinds", "name"), [(["H100"], "h100-80gb"), (["L4"], "l4"), ([], None), (["H100", "L4"], None), (["TPU-v4"], None)]
)
def test_the_gpus_of_a_cluster(monkeypatch: pytest.MonkeyPatch, kinds: list[str], name: str | None) -> None:
    _nodes(monkeypatch, *({"GPU": 8.0, f"accelerator_type:{kind}": 1.0} for kind in kinds), {"CPU": 4.0})
    gpu = Cluster(joined=True).gpu()
    assert (gpu and gpu.name) == name and (gpu is None or gpu.host is None)


def test_the_memory_of_the_smallest_node_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = {"GPU": 8.0, "accelerator_type:H100": 1.0}
    small = kind | {"memory": 70e9, "object_store_memory": 30e9}
    _nodes(monkeypatch, kind | {"memory": 140e9, "object_store_memory": 60e9}, small, {"CPU": 4.0, "memory": 1e9})
    cluster, a100 = Cluster(joined=True), gpu_named("a100-80gb")
    assert cluster.gpu() == replace(gpu_named("h100-80gb"), host=100 * 10**9)
    assert cluster.gpu(a100) == replace(a100, host=100 * 10**9)
    assert cluster.gpu(known := replace(a100, host=5)) == known


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


def test_memory_is_asked_for_up_to_what_the_largest_node_has(
    have: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Resources(1.0, 0, 1)
    assert worker.to_dict() == {"CPU": 1.0}
    _nodes(monkeypatch, {"CPU": 4.0, "memory": 4e9}, {"CPU": 4.0, "memory": 8e9})
    assert worker.with_memory(1 << 30).to_dict() == {"CPU": 1.0, "memory": 1 << 30}
    assert worker.with_memory(1 << 40).memory == 8_000_000_000


@pytest.mark.parametrize(("limit", "most"), [("max", 1 << 62), ("4096", 4096), ("9223372036854771712", 1 << 62)])
def test_a_container_has_no_more_memory_than_its_limit(limit: str, most: int, tmp_path: Path) -> None:
    file = tmp_path / "memory.max"
    file.write_text(f"{limit}\n")
    total = psutil.virtual_memory().total
    assert memory_of_this_machine([str(file), str(tmp_path / "absent")]) == min(total, most)
    assert 0 < memory_of_this_machine() <= total

"""Clusters that grow when a run asks: the public guide's scenario, a head without CPUs and GPUs, and no nodes yet."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault_table import Row
from tests.smoke.autoscaling import AutoscalingCluster
from tests.smoke.conftest import read_metrics, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(900)]
GUIDE = {
    "num_workers": 8,
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "train_iters": 100,
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "seq_length": 512,
}


def start(cluster: AutoscalingCluster, *words: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "raymb", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cluster.environment(**variables),
    )


def finetune(model: Path, rows: Path, storage: Path, **flags: Any) -> list[str]:
    given = {"hf_model_path": model, "dataset": rows, "storage_path": storage, "experiment_name": "run", **flags}
    return ["finetune", *words_of(given)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[AutoscalingCluster]:
    cluster = AutoscalingCluster("cpu-4", "gpu-4")
    yield cluster
    cluster.close()


def test_the_guides_command_on_nodes_that_come_and_go(
    cluster: AutoscalingCluster, tiny_qwen2: Path, rows: Path, tmp_path: Path
) -> None:
    """8 workers on two nodes of 4, from zero: no address is given, and the head gets no worker."""
    began = time.monotonic()
    process = start(
        cluster, *finetune(tiny_qwen2, rows, tmp_path, backend="cpu", **GUIDE), NCCL_DEBUG="WARN", PYTHONUNBUFFERED="1"
    )
    seconds = {}
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        seconds[line.strip()[:110]] = round(time.monotonic() - began)
    error = "".join(lines)
    for line, second in seconds.items():
        print(f"{second:>5} s  {line}")
    assert process.wait() == 0, error
    assert re.match(r"joined the Ray cluster at [\d.]+:\d+: 1 node, 0 CPUs, no GPUs\n", error), error
    assert "waiting for resources, " in error and "8 CPUs asked (1 for each worker), 0 there" in error
    assert re.search(r"placed: ranks 0 to 3 on .+, 4 to 7 on ", error)
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == list(range(1, 101))
    for place in ("checkpoints/iter_0000100", "hf/model.safetensors", "hf/README.md"):
        assert (tmp_path / "run" / place).exists()
    assert sorted(node["CPU"] for node in cluster.nodes()) == [4, 4]
    gone = cluster.wait_for_nodes(0, seconds=90)
    print(f"{time.monotonic() - began:>5.0f} s  the nodes are gone, {gone:.0f} s after the run")


def test_gpus_are_asked_for_and_a_node_without_cuda_is_named(
    cluster: AutoscalingCluster, tiny_qwen2: Path, rows: Path, tmp_path: Path, fault_table: list[Row]
) -> None:
    """The GPUs of these nodes are there by Ray's word alone."""
    process = start(cluster, *finetune(tiny_qwen2, rows, tmp_path, **GUIDE))
    error = process.communicate(timeout=300)[1]
    print(error)
    assert process.returncode == 2, error
    assert "8 GPUs asked (1 for each worker), 0 there" in error
    assert len(re.findall(r"\n  .*: Ray counts 4 GPUs there, and CUDA finds 0", error)) == 2
    assert "--backend cpu" in error and "Traceback" not in error
    assert sorted(node.get("GPU", 0) for node in cluster.nodes()) == [4, 4]
    fault_table.append(Row("nodes come without the GPUs that Ray counts", "exit 2, names each node"))
    cluster.wait_for_nodes(0, seconds=90)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_ends_while_it_waits_withdraws_what_it_asked_for(
    cluster: AutoscalingCluster,
    tiny_qwen2: Path,
    rows: Path,
    tmp_path: Path,
    number: signal.Signals,
    fault_table: list[Row],
) -> None:
    """Another driver holds one CPU of the two nodes, so that the run keeps waiting with both of them there."""
    occupant = _occupy(cluster)
    try:
        process = start(cluster, *finetune(tiny_qwen2, rows, tmp_path, **GUIDE, backend="cpu"))
        assert process.stderr is not None
        while "waiting for resources" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == (130 if number == signal.SIGINT else -number), error
    finally:
        occupant.kill()
        occupant.wait()
    cluster.wait_for_nodes(0, seconds=90)
    assert [place.name for place in tmp_path.iterdir()] == ["_prepared"]
    fault_table.append(Row(f"{number.name} while a run waits for nodes to come", "ends; the nodes go again"))


def _occupy(cluster: AutoscalingCluster) -> subprocess.Popen[str]:
    """A driver that holds one CPU, and so a node."""
    script = (
        "import ray, sys, time; ray.init('auto', log_to_driver=False, logging_level=40);"
        "group = ray.util.placement_group([{'CPU': 1}]); group.wait(60); print('there', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=cluster.environment()
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


def test_a_cluster_that_can_never_have_gpus_is_refused_at_once(
    tiny_qwen2: Path, rows: Path, tmp_path: Path, fault_table: list[Row]
) -> None:
    """It wants a token, too, which the head's own user has."""
    cluster = AutoscalingCluster("cpu-4", token="a" * 32)
    try:
        began = time.monotonic()
        process = start(cluster, *finetune(tiny_qwen2, rows, tmp_path, **GUIDE))
        error = process.communicate(timeout=300)[1]
        seconds = time.monotonic() - began
        print(f"{seconds:.0f} s\n{error}")
    finally:
        cluster.close()
    assert process.returncode == 2, error
    assert "joined the Ray cluster at" in error
    assert "the cluster can never have enough for 8 workers: " in error
    assert "8 GPUs asked (1 for each worker), 0 there, and Ray's autoscaler has no nodes to add" in error
    assert "--backend cpu" in error
    fault_table.append(
        Row("a cluster that can never have the GPUs", "exit 2, says so, does not wait", f"{seconds:.1f}")
    )


def test_raymb_on_the_head_only(tiny_qwen2: Path, rows: Path, tmp_path: Path, fault_table: list[Row]) -> None:
    """The nodes find another module of that name, which has no raymb in it; --working_dir brings the right one."""
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "raymb.py").write_text("")
    (tmp_path / "project").mkdir()
    cluster = AutoscalingCluster("cpu-4", PYTHONPATH=str(tmp_path / "nodes"))
    flags = {"backend": "cpu", "num_workers": 2, "train_iters": 2, "seq_length": 64, "export_hf": False}
    try:
        words = finetune(tiny_qwen2, rows, tmp_path, **flags)
        refused = start(cluster, *words, PYTHONPATH="").communicate(timeout=300)[1]
        process = start(cluster, *words, "--working_dir", str(tmp_path / "project"), PYTHONPATH="")
        error = process.communicate(timeout=300)[1]
    finally:
        cluster.close()
    print(refused, error)
    assert "error: raymb cannot be imported on every node of the cluster\n  " in refused
    assert "ModuleNotFoundError: No module named 'raymb.worker'" in refused and "--working_dir ." in refused
    assert process.returncode == 0, error
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    fault_table.append(Row("nodes that have no raymb", "exit 2, names --working_dir, which brings it"))


def test_a_cluster_that_is_gone_is_no_error(
    tiny_qwen2: Path, rows: Path, tmp_path: Path, fault_table: list[Row]
) -> None:
    cluster = AutoscalingCluster("cpu-4")
    variables = cluster.environment()
    note = (cluster.home / "ray" / "ray_current_cluster").read_text()
    cluster.close()
    (cluster.home / "ray").mkdir(parents=True)
    (cluster.home / "ray" / "ray_current_cluster").write_text(note)
    flags = {"num_workers": 1, "train_iters": 1, "export_hf": False, "seq_length": 64}
    done = subprocess.run(
        [sys.executable, "-m", "raymb", *finetune(tiny_qwen2, rows, tmp_path, **flags)],
        capture_output=True,
        text=True,
        env=variables,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"{note}, the last Ray cluster of this machine, does not answer; started Ray on this machine" in done.stderr
    fault_table.append(Row("the last Ray cluster of this machine is gone", "says so, starts one, finishes"))

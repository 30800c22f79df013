"""A cluster whose resources others use, and nodes that go: a run waits, says for what, and ends in time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_table import Row
from tests.smoke.conftest import MAIN_FLAGS, words_of
from tests.smoke.ray_nodes import RayNodes

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(900)]
OCCUPY = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level=40)

@ray.remote(num_cpus=1)
class Other:
    def there(self):
        return True

others = [Other.remote() for _ in range(int(sys.argv[2]))]
print("asked", flush=True)
ray.get([other.there.remote() for other in others])
print("there", flush=True)
time.sleep(1000)
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{Path('src').absolute()}:{Path.cwd()}"}
if (Path.home() / ".ray" / "auth_token").is_file():  # the nodes use it, then, and clients show it only when told
    ENVIRONMENT["RAY_AUTH_MODE"] = "token"


class Cluster:
    """A node of two CPUs, others that want them, and the processes on it."""

    def __init__(self, home: Path):
        self.home = home
        self.nodes = RayNodes(2)
        self.processes: list[subprocess.Popen[str]] = []

    def others_want(self, cpus: int) -> subprocess.Popen[str]:
        """Processes that take so many CPUs as soon as they are free."""
        process = self._start([sys.executable, "-c", OCCUPY, self.nodes.address, str(cpus)])
        assert process.stdout is not None and process.stdout.readline() == "asked\n"
        return process

    def run(self, workers: int, tensor: int, seconds: float) -> subprocess.Popen[str]:
        words = [self.nodes.address, self.home, workers, tensor, seconds]
        return self._start([sys.executable, "-m", "tests.smoke.placed_run", *map(str, words)])

    def _start(self, words: list[str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        self.processes.append(process)
        return process

    def started(self, count: int) -> list[str]:
        """The nodes of the workers that have started, once there are so many."""
        file, deadline = self.home / "started", time.monotonic() + 300
        while not file.exists() or len(lines := file.read_text().splitlines()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return [line.split()[1] for line in lines]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.nodes.close()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])  # of the workers, which the nodes start
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def until(process: subprocess.Popen[str], text: str) -> list[str]:
    """What it prints up to a line with this text."""
    lines: list[str] = []
    assert process.stdout is not None
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return lines


def test_workers_that_failed_keep_their_places(cluster: Cluster, fault_table: list[Row]) -> None:
    """Others who have waited for the CPUs do not get them between two starts, or the run would wait for them."""
    run = cluster.run(2, 1, 20)
    cluster.started(2)
    cluster.others_want(2)
    (cluster.home / "die-1").touch()
    cluster.started(4)
    (cluster.home / "done").touch()
    said = run.communicate(timeout=120)[0]
    assert said.endswith("finished\n") and said.count("failure ") == 1 and "waiting" not in said, said
    fault_table.append(
        Row("a worker dies, and others wait for its CPUs", "starts again in its places, without waiting")
    )


def test_a_run_on_a_busy_cluster_is_refused_in_time(
    cluster: Cluster, tiny_qwen2: Path, rows: Path, fault_table: list[Row]
) -> None:
    other = cluster.others_want(1)
    until(other, "there")
    flags = {**MAIN_FLAGS, "hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": cluster.home / "runs"}
    flags |= {"num_workers": 2, "cpus_per_worker": 1, "wait_for_resources": 3, "ray_address": cluster.nodes.address}
    words = [sys.executable, "-m", "raymb", "finetune", *words_of(flags)]
    began, error, told = time.monotonic(), "", 0.0
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr is not None
    for line in process.stderr:
        error += line
        if "waiting for resources, " in line and not told:
            told = time.monotonic() - began
    assert process.wait(timeout=300) == 2, error
    ended = time.monotonic() - began
    assert "waiting for resources, 1 of 3 s: 2 CPUs asked (1 for each worker), 2 there, 1 of them free" in error
    assert re.search(r"room for workers: 1 of 2 on \S+ \(\w{8}\)", error)
    assert "error: the cluster has too little for 2 workers after 3 s" in error
    assert [place.name for place in (cluster.home / "runs").iterdir()] == ["_prepared"]
    outcome = f"says for what it waits after {told:.1f} s, exit 2 after {ended:.1f} s"
    fault_table.append(Row("start on a busy cluster, --wait_for_resources 3", outcome, f"{ended:.1f}"))


@pytest.mark.parametrize("ended", ["by SIGTERM", "in time"])
def test_a_run_whose_node_has_gone_waits_without_failures(cluster: Cluster, ended: str, fault_table: list[Row]) -> None:
    goes = cluster.nodes.add(2)
    run = cluster.run(4, 2, 300 if ended == "by SIGTERM" else 15)
    assert sorted(map(cluster.started(4).count, {goes, *cluster.started(4)})) == [2, 2]
    cluster.nodes.kill(goes)
    said = until(run, "waiting for resources")
    assert sum(line.startswith("failure") for line in said) == 1, said
    assert "4 CPUs asked (1 for each worker), 2 there" in said[-1]
    began = time.monotonic()
    if ended == "by SIGTERM":
        run.send_signal(signal.SIGTERM)
    rest = run.communicate(timeout=120)[0]
    seconds = f"{time.monotonic() - began:.1f}"
    print(f"{ended}: {seconds} s\n{rest}")
    assert "failure" not in rest
    if ended == "by SIGTERM":
        assert "ended: SystemExit" in rest
        fault_table.append(Row("SIGTERM while a run waits whose node has gone", "leaves, no failure counted", seconds))
    else:
        assert "ended: RunFailed the cluster has too little for 4 workers after 1" in rest
        outcome = "waits, says for what; ends in time, no failure counted"
        fault_table.append(Row("a node goes, none comes (--wait_for_resources 15)", outcome, seconds))


def test_a_tensor_parallel_group_waits_for_room_on_one_node(cluster: Cluster, fault_table: list[Row]) -> None:
    """Each of two nodes has one free CPU; Ray alone would start a worker on each."""
    cluster.nodes.add(2)
    others = [cluster.others_want(1) for _ in range(4)]
    for other in others:
        until(other, "there")
    first, last = others[0], others[-1]  # Ray fills the first node first
    first.kill()
    last.kill()
    run = cluster.run(2, 2, 60)
    said = until(run, "do not fit into what is free on each node")[-1]
    assert "room for workers, of which 2 must be on one node: 1 of 2 on " in said, said
    others[1].kill()
    others[2].kill()
    assert len(set(cluster.started(2))) == 1
    (cluster.home / "done").touch()
    assert run.communicate(timeout=120)[0].endswith("finished\n")
    fault_table.append(Row("TP 2, one CPU free on each of two nodes", "waits for two on one node, finishes"))


def test_a_node_on_which_workers_failed_twice_is_left_alone(cluster: Cluster, fault_table: list[Row]) -> None:
    bad = cluster.nodes.add(2)
    run = cluster.run(2, 2, 60)
    if cluster.started(2)[0] != bad:  # the run has taken the other node: that one is the bad one then
        bad = cluster.started(2)[0]
    for count in (4, 6):
        (cluster.home / "die-0").touch()
        nodes = cluster.started(count)[-2:]
    assert bad not in nodes
    (cluster.home / "done").touch()
    said = run.communicate(timeout=120)[0]
    assert said.endswith("finished\n") and "gets no more workers: they failed there 2 times" in said, said
    fault_table.append(Row("a worker dies twice on one node of two", "the node gets no more workers; finishes"))


def test_what_ends_withdraws_its_request(cluster: Cluster, fault_table: list[Row]) -> None:
    """The placement group of a driver that waits goes with it, however it ends."""
    script = (
        "import sys, ray; from ray.util import placement_group_table as table;"
        "ray.init(sys.argv[1], log_to_driver=False, logging_level=40);"
        "print(*[group['state'] for group in table().values()])"
    )
    run = cluster.run(4, 1, 300)
    until(run, "waiting for resources")
    run.send_signal(signal.SIGTERM)
    run.wait(timeout=60)
    deadline = time.monotonic() + 60
    while True:
        words = [sys.executable, "-c", script, cluster.nodes.address]
        states = subprocess.run(words, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout.split()
        if set(states) <= {"REMOVED"}:
            fault_table.append(Row("SIGTERM while a driver waits at its start", "ends; its request is withdrawn"))
            return
        assert time.monotonic() < deadline, states

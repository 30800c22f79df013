"""Three Ray nodes on one machine, each with its own ports, one with a name and file systems of its own: tensor parallel
inside a node, pipeline parallel across; what is refused, and what raymb doctor says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault_table import Row
from tests.outputs import compare
from tests.smoke.conftest import MAIN_FLAGS, read_metrics, words_of
from tests.smoke.ray_nodes import RayNodes

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(900)]


class Nodes:
    """
    Args:
        cluster: the three.
        storage: a directory that all see.
        apart: one in whose place the third node, called node-c, has a file system of its own.
    """

    def __init__(self, cluster: RayNodes, storage: Path, apart: Path):
        self.cluster, self.storage, self.apart = cluster, storage, apart

    def raymb(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raymb", *map(str, words), "--ray_address", self.cluster.address]
        environment = {**os.environ, **self.cluster.authentication, "PYTHONPATH": "src", "COLUMNS": "200"}
        return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)

    @property
    def stand_ins(self) -> dict[str, str]:
        """For the pages that show what raymb says here."""
        names = {r"\(127\.[\d.]+, node \w+\)": "(10.0.0.7, node 785ac265)", r"\d+(\.\d+){3}:\d+": "10.0.0.5:6379"}
        return {re.escape(str(self.apart)): "/shared/runs", re.escape(str(self.storage)): "/shared/runs", **names}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    place = tmp_path_factory.mktemp("nodes")
    storage, apart = place / "storage", place / "apart"
    storage.mkdir()
    apart.mkdir()
    cluster = RayNodes(2)
    cluster.add(2)
    cluster.add_apart("node-c", apart, 2)
    cluster.wait_for(3)
    yield Nodes(cluster, storage, apart)
    cluster.close()


def words(model: Path, rows: Path, storage: Path, **flags: Any) -> list[str]:
    given = {"hf_model_path": model, "dataset": rows, "storage_path": storage, "experiment_name": "run"}
    return ["finetune", "--no_export_hf", *words_of({**given, **MAIN_FLAGS, **flags})]


def test_doctor_names_the_node_that_does_not_see_the_storage(nodes: Nodes) -> None:
    done = nodes.raymb("doctor", "--json", "--storage_path", nodes.apart, "--hf_model_path", "sample")
    assert done.returncode == 1, done.stderr
    said = [one for one in json.loads(done.stdout)["findings"] if one["area"] == "cluster"]
    assert "3 nodes with 6 CPUs" in next(one["said"] for one in said if one["name"] == "nodes")
    assert next(one["said"] for one in said if one["name"] == "versions").startswith("all 3 nodes: Python, raymb and")
    errors = [one for one in said if one["status"] == "error"]
    assert [(one["name"], one["said"].split(" ")[0]) for one in errors] == [("storage", "node-c")]
    assert str(nodes.apart) in errors[0]["said"] and "--storage_path" in errors[0]["fix"]
    text = nodes.raymb("doctor", "--storage_path", nodes.apart, "--hf_model_path", "sample").stdout
    of_nodes = re.findall(r"^  \w+ +(?:nodes|versions|storage): .*(?:\n {11}fix: .*)?", text, re.MULTILINE)
    compare("doctor.md", "storage", "\n".join(of_nodes), nodes.stand_ins)


def test_doctor_finds_nothing_wrong_with_storage_that_all_see(nodes: Nodes) -> None:
    done = nodes.raymb("doctor", "--storage_path", nodes.storage, "--hf_model_path", "sample", "--allreduce")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"seen and written by 3 nodes: {nodes.storage}" in done.stdout
    assert re.search(r"bandwidth: [\d.]+ GB/s bus bandwidth, gloo, 3 ranks on 3 nodes", done.stdout)
    assert list(nodes.storage.iterdir()) == []


def test_a_run_is_refused_where_a_node_does_not_see_the_storage(
    nodes: Nodes, tiny_qwen2: Path, rows: Path, fault_table: list[Row]
) -> None:
    done = nodes.raymb(*words(tiny_qwen2, rows, nodes.apart, num_workers=2))
    assert done.returncode == 2, done.stderr
    assert "not one place for all nodes; not seen by\n  node-c (" in done.stderr and "Traceback" not in done.stderr
    compare("doctor.md", "refused", done.stderr[done.stderr.index("error: ") :], nodes.stand_ins)
    fault_table.append(Row("one of three nodes does not see the storage", "exit 2, names the node"))


def test_groups_that_no_placement_keeps_whole_are_refused(
    nodes: Nodes, tiny_qwen2: Path, rows: Path, tmp_path: Path, fault_table: list[Row]
) -> None:
    """Nodes that hold 3 workers, and so one group, each."""
    flags = {"num_workers": 8, "tensor_parallel_size": 2, "cpus_per_worker": 0.66, "global_batch_size": 24}
    done = nodes.raymb(*words(tiny_qwen2, rows, tmp_path, **flags))
    assert done.returncode == 2, done.stderr
    said = "--num_workers 8 are 4 tensor parallel groups of 2, and nodes that hold 3, 3, 3 workers have room for 3"
    assert said in done.stderr and "--cpus_per_worker" in done.stderr
    assert "importing Megatron" not in done.stderr and "Traceback" not in done.stderr
    compare("multi-node.md", "straddling", done.stderr[done.stderr.index("error: ") :], nodes.stand_ins)
    fault_table.append(Row("TP groups that no placement keeps whole", "exit 2, the sum and the flags"))


def test_tensor_parallel_inside_a_node_and_pipeline_parallel_across(
    nodes: Nodes, tiny_qwen2: Path, rows: Path, tmp_path: Path
) -> None:
    """Nodes that hold 3 workers each: filled one after the other, they would tear a group apart."""
    flags = {"num_workers": 6, "tensor_parallel_size": 2, "cpus_per_worker": 0.66, "train_iters": 3}
    flags |= {"pipeline_parallel_size": 3, "num_layers_in_first_stage": 1, "num_layers_in_last_stage": 1}
    done = nodes.raymb(*words(tiny_qwen2, rows, tmp_path, **flags))
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    placed = re.search(r"placed: ranks 0 to 1 on (.+?), 2 to 3 on (.+?), 4 to 5 on (.+)", done.stderr)
    assert placed and len(set(placed.groups())) == 3
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3]

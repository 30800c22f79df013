"""What is said of a cluster's nodes, and of one that does not let this client in. Real ones: tests/smoke."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from raymb.doctor.cluster import check_cluster, judge_nodes, why_not_joined
from raymb.doctor.finding import Finding
from raymb.doctor.machine import Device, Machine

H100 = Device(0, "NVIDIA H100 80GB HBM3", 80 << 30, 0, 9.0, 0)


def node(name: str, machine: Machine, **changes: Any) -> dict[str, Any]:
    return {"name": name, "cpus": 8.0, "gpus": 0.0, "storage_trouble": "", "machine": asdict(machine), **changes}


def judged(here: Machine, *nodes: dict[str, Any]) -> list[Finding]:
    return list(judge_nodes("head:6379", nodes, "/storage", here, None))


def test_nodes_that_are_alike(here: Machine) -> None:
    found = judged(here, node("a", here), node("b", here))
    assert {finding.status for finding in found if finding.name != "temp"} == {"ok"}
    said = [finding.said for finding in found]
    assert "head:6379: 2 nodes with 16 CPUs and 0 GPUs" in said
    assert any(text.startswith("all 2 nodes: Python, raymb and 1") for text in said)
    assert "seen and written by 2 nodes: /storage" in said


@pytest.mark.parametrize(("package", "status"), [("ray", "error"), ("megatron-core", "error"), ("six", "warning")])
def test_nodes_with_other_versions(here: Machine, package: str, status: str) -> None:
    other = replace(here, packages={**here.packages, package: "0.1"})
    found = judged(here, node("a", here), node("b", other), node("c", other))
    versions = [finding for finding in found if finding.name == "versions" and finding.status != "ok"]
    assert [finding.status for finding in versions] == [status]
    assert versions[0].said.startswith(f"b, c: not as here: {package} 0.1 (here {here.packages[package]})")


def test_a_node_that_is_blind_one_that_is_silent_and_one_without_raymb(here: Machine) -> None:
    silent = {"name": "c", "cpus": 8.0, "gpus": 0.0, "storage_trouble": "", "trouble": "no answer within 60 s"}
    without = {**silent, "name": "d", "trouble": "ModuleNotFoundError: No module named 'raymb'"}
    found = judged(here, node("a", here), node("b", here, storage_trouble="Permission denied"), silent, without)
    errors = {finding.said: finding.fix for finding in found if finding.status == "error"}
    assert set(errors) == {
        "b: /storage is not seen: Permission denied",
        "c: no answer within 60 s",
        "d: ModuleNotFoundError: No module named 'raymb'",
    }
    assert "install raymb" in errors["d: ModuleNotFoundError: No module named 'raymb'"]
    assert not any("seen and written" in finding.said for finding in found)


def test_gpus_of_nodes(here: Machine) -> None:
    """A client without GPUs, whose nodes have them: what a node lacks is said of it."""
    gpu_node = replace(here, devices=[H100, replace(H100, index=1)], driver="535.1", glibc="2.36")
    found = judged(replace(here, devices=[]), node("a", gpu_node, gpus=1.0))
    said = {finding.name: (finding.status, finding.said) for finding in found if finding.status != "ok"}
    assert said["driver"][0] == "error" and said["driver"][1].startswith("a: 535.1 is older than 580")
    assert said["gpus"] == ("warning", "a: there are 2 GPUs, and Ray counts 1")
    assert "CUDA packages" in said or "transformer-engine-torch" in here.packages


def test_no_node_that_could_work(here: Machine) -> None:
    assert judged(here)[-1].status == "error"


REFUSED = """[2026-11-22 11:42:35,546 W 20160 20160] gcs_client.cc:210: Failed to get cluster ID from GCS server: \
Unauthenticated: RPC error: InvalidAuthToken: Authentication token is missing or incorrect
ConnectionError: Failed to connect to Ray cluster at 192.0.2.2:6411
"""
OTHER_VERSION = """RuntimeError: Version mismatch: The cluster was started with:
    Ray: 2.50.0
    Python: 3.11.9
This process on node 192.0.2.2 was started with:
    Ray: 2.60.0
    Python: 3.12.1
"""


@pytest.mark.parametrize(
    ("errors", "said", "fix"),
    [
        (REFUSED, "refuses this client's authentication token", "RAY_AUTH_TOKEN"),
        (
            OTHER_VERSION,
            "runs Ray 2.50.0 on Python 3.11.9, this client Ray 2.60.0 on Python 3.12.1",
            "the same on both",
        ),
        ("no answer within 90 s", "no Ray cluster answers at head:6379: no answer within 90 s", "--ray_address"),
    ],
)
def test_why_a_cluster_cannot_be_joined(errors: str, said: str, fix: str) -> None:
    found = why_not_joined("head:6379", errors)
    assert found.status == "error" and said in found.said and fix in found.fix


def test_no_cluster_at_the_address(here: Machine) -> None:
    found = list(check_cluster("127.0.0.1:1", None, 5.0, here, None, lambda what: None))
    assert found[-1].said == "no Ray cluster answers at 127.0.0.1:1: Connection refused"


def test_a_token_that_is_asked_for_and_is_not_there(here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    found = next(check_cluster("127.0.0.1:1", None, 1.0, here, None, lambda what: None))
    assert (found.name, found.status) == ("token", "error")

"""What is said of GPUs, from what nvidia-smi prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from raymb.doctor.allreduce import bus_bandwidth, judge
from raymb.doctor.gpus import check_gpus
from raymb.doctor.machine import Machine

Look = Callable[[str], Machine]
ROW = "{index}, NVIDIA H100 80GB HBM3, {driver}, 81559, {used}, {capability}, {errors}"


def smi(*rows: dict[str, object]) -> str:
    good = {"driver": "580.95.05", "used": 4, "capability": "9.0", "errors": 0}
    lines = (ROW.format(**{**good, "index": index, **row}) for index, row in enumerate(rows))
    return "\n".join(f"echo '{line}'" for line in lines)


def said(machine: Machine) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.status, finding.said) for finding in check_gpus(machine)}


def test_good_gpus(nvidia_smi: Look) -> None:
    found = said(nvidia_smi(smi({}, {"errors": "[N/A]"})))
    assert found["devices"] == ("ok", "2 x NVIDIA H100 80GB HBM3 of 79.6 GiB")
    assert found["driver"][0] == "ok" and "580.95.05, for CUDA 13.0 of torch" in found["driver"][1]
    assert len(found) == 2


def test_an_old_driver(nvidia_smi: Look) -> None:
    status, text = said(nvidia_smi(smi({"driver": "550.54.15"})))["driver"]
    assert (status, text) == ("error", "550.54.15 is older than 580, which CUDA 13.0 of the installed torch needs")


def test_torch_without_cuda(nvidia_smi: Look) -> None:
    machine = replace(nvidia_smi(smi({})), torch_cuda="")
    assert said(machine)["driver"][0] == "error"


@pytest.mark.parametrize(
    ("row", "status", "text"),
    [
        ({"used": 40000}, "warning", "39.1 of 79.6 GiB are in use by other processes"),
        ({"errors": 3}, "error", "3 uncorrected memory errors"),
        ({"capability": "7.5"}, "error", "compute capability 7.5"),
    ],
)
def test_a_gpu_that_cannot_be_used(nvidia_smi: Look, row: dict[str, object], status: str, text: str) -> None:
    found = said(nvidia_smi(smi({}, row)))
    assert found["GPU 1"][0] == status and text in found["GPU 1"][1]
    assert "GPU 0" not in found


def test_gpus_that_are_hidden(nvidia_smi: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = nvidia_smi(smi({}, {}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert any("hides all 2" in finding.said for finding in check_gpus(machine))


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9", "has failed"),
        ("exec sleep 60", "no answer within 1 s"),
        ("exit 0", "ended with 0"),
    ],
    ids=["fails", "hangs", "says nothing"],
)
def test_a_broken_driver(nvidia_smi: Look, script: str, text: str) -> None:
    begin = time.monotonic()
    found = said(nvidia_smi(script))
    assert found["nvidia-smi"][0] == "error" and text in found["nvidia-smi"][1]
    assert time.monotonic() - begin < 10


def test_no_gpu(tested_machine: Machine) -> None:
    assert said(tested_machine)["devices"][0] == "ok"


def test_bandwidth_is_judged_by_the_links(nvidia_smi: Look) -> None:
    """8 ranks with 256 MiB: 2 x 7/8 of it through each link."""
    devices = nvidia_smi(smi(*[{}] * 8)).devices
    answer = {"backend": "nccl", "ranks": 8, "nodes": 1, "bytes": 256 << 20, "seconds": 0.0012}
    assert bus_bandwidth(8, 1 << 30, 1.0) == 2 * 7 / 8 * (1 << 30)
    fast, slow = judge(answer, devices), judge({**answer, "seconds": 0.02}, devices)
    assert fast.status == "ok" and fast.said.startswith("391 GB/s bus bandwidth, nccl, 8 ranks on 1 node")
    assert slow.status == "warning" and "NVLink" in slow.fix
    assert judge({**answer, "seconds": 0.02, "nodes": 2}, devices).status == "ok"  # the network's rate is not known

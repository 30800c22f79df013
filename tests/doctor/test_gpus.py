"""What is said of GPUs, from what NVIDIA's management library says (nvml.c)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raymb.doctor.allreduce import bus_bandwidth, judge
from raymb.doctor.gpus import check_gpus
from raymb.doctor.machine import Machine, this_machine

Look = Callable[..., Machine]
H100 = (81559, 4, "9.0", 0)


def said(machine: Machine) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.status, finding.said) for finding in check_gpus(machine)}


def test_good_gpus(with_gpus: Look) -> None:
    found = said(with_gpus(H100, (81559, 4, "9.0", -1)))
    assert found["devices"] == ("ok", "2 x NVIDIA H100 80GB HBM3 of 79.6 GiB")
    assert found["driver"][0] == "ok" and "580.95.05, for CUDA 13.0 of torch" in found["driver"][1]
    assert len(found) == 2


def test_an_old_driver(with_gpus: Look) -> None:
    status, text = said(with_gpus(H100, driver="550.54.15"))["driver"]
    assert (status, text) == ("error", "550.54.15 is older than 580, which CUDA 13.0 of the installed torch needs")


def test_torch_without_cuda(with_gpus: Look) -> None:
    machine = replace(with_gpus(H100), torch_cuda="")
    assert said(machine)["driver"][0] == "error"


@pytest.mark.parametrize(
    ("gpu", "status", "text"),
    [
        ((81559, 40000, "9.0", 0), "warning", "39.1 of 79.6 GiB are in use by other processes"),
        ((81559, 4, "9.0", 3), "error", "3 uncorrected memory errors"),
        ((81559, 4, "7.5", 0), "error", "compute capability 7.5"),
    ],
)
def test_a_gpu_that_cannot_be_used(with_gpus: Look, gpu: tuple[int, int, str, int], status: str, text: str) -> None:
    found = said(with_gpus(H100, gpu))
    assert found["GPU 1"][0] == status and text in found["GPU 1"][1]
    assert "GPU 0" not in found


def test_gpus_that_are_hidden(with_gpus: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = with_gpus(H100, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert any("hides all 2" in finding.said for finding in check_gpus(machine))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"NVML_FAILS": "9"}, "NVIDIA's driver says: Driver Not Loaded"),
        ({"NVML_HANGS": "yes"}, "NVIDIA's driver gives no answer within 3 s"),
        ({}, "NVIDIA's driver has no GPU"),
    ],
    ids=["fails", "hangs", "has none"],
)
def test_a_broken_driver(with_gpus: Look, settings: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymb.doctor.machine.SECONDS_FOR_NVML", 3.0)
    begin = time.monotonic()
    assert said(with_gpus(**settings))["driver"] == ("error", text)
    assert time.monotonic() - begin < 30


def test_a_driver_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raymb.doctor.machine._DEVICE_FILES", (str(tmp_path),))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (tmp_path / "libnvidia-ml.so.1").write_text("no library")
    assert "NVML Shared Library Not Found" in this_machine(None).trouble


def test_no_gpu(tested_machine: Machine) -> None:
    assert said(tested_machine)["devices"][0] == "ok"


def test_bandwidth_is_judged_by_the_links(with_gpus: Look) -> None:
    """8 ranks with 256 MiB: 2 x 7/8 of it through each link."""
    devices = with_gpus(*[H100] * 8).devices
    answer = {"backend": "nccl", "ranks": 8, "nodes": 1, "bytes": 256 << 20, "seconds": 0.0012}
    assert bus_bandwidth(8, 1 << 30, 1.0) == 2 * 7 / 8 * (1 << 30)
    fast, slow = judge(answer, devices), judge({**answer, "seconds": 0.02}, devices)
    assert fast.status == "ok" and fast.said.startswith("391 GB/s bus bandwidth, nccl, 8 ranks on 1 node")
    assert slow.status == "warning" and "NVLink" in slow.fix
    assert judge({**answer, "seconds": 0.02, "nodes": 2}, devices).status == "ok"  # the network's rate is not known

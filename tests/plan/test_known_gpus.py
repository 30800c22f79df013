"""GPUs by torch's names of devices, and by raymb's."""

from __future__ import annotations

import pytest

from raymb.errors import SpecError
from raymb.plan.gpus import GPUS, gpu_named, gpu_of_device


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250.0),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L4", 121.0),
    ],
)
def test_known_chip(name: str, peak: float) -> None:
    gpu = gpu_of_device(name)
    assert gpu is not None and gpu.tflops == peak


@pytest.mark.parametrize("name", ["", "cpu", "NVIDIA A10", "NVIDIA GeForce RTX 4090", "NVIDIA H1000"])
def test_unknown_chip_has_no_peak(name: str) -> None:
    assert gpu_of_device(name) is None


def test_names_of_raymb() -> None:
    assert gpu_named("H100-80GB").tflops == 989.4 and gpu_named("a100-40gb").memory < gpu_named("a100-80gb").memory
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    assert gpu_of_device("NVIDIA A100-SXM4-40GB") == gpu_named("a100-40gb")
    with pytest.raises(SpecError, match="--gpu h99 is not known"):
        gpu_named("h99")

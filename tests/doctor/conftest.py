"""Machines that differ from this one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raymb.doctor import machine as machines
from raymb.doctor.machine import Machine, this_machine
from raymb.doctor.tested import pinned_versions


@pytest.fixture(scope="session")
def here() -> Machine:
    return this_machine(None)


@pytest.fixture
def tested_machine(here: Machine) -> Machine:
    """This machine with exactly the tested set for CPUs."""
    return replace(here, packages=dict(pinned_versions("cpu")), devices=[], driver="", trouble="", python="3.12.1")


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a libnvidia-ml.so.1 that says what it is told to (nvml.c)."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("nvml.c")], check=True)
    return library.parent


@pytest.fixture
def with_gpus(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """A machine whose NVIDIA driver has the given GPUs: memory in MiB, used, compute capability, errors."""

    def look(*gpus: tuple[int, int, str, int], driver: str = "580.95.05", **settings: str) -> Machine:
        told = {"NVML_GPUS": "\n".join(" ".join(map(str, gpu)) for gpu in gpus), "NVML_DRIVER": driver, **settings}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_library), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(machines, "_DEVICE_FILES", (str(tmp_path),))
        return this_machine(None)

    return look

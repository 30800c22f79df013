"""Machines that differ from this one."""

from __future__ import annotations

import stat
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


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    """A machine whose nvidia-smi is the given shell script."""

    def look(script: str) -> Machine:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(machines, "SECONDS_FOR_NVIDIA_SMI", 1.0)
        return this_machine(None)

    return look

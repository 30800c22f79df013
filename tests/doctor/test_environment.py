"""Packages against the tested set, which is requirements/*.txt itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raymb.doctor.environment import check_environment
from raymb.doctor.finding import Finding
from raymb.doctor.machine import Device, Machine
from raymb.doctor.tested import DIRECTORY, pinned_versions

PROJECT = Path(__file__).parents[2]
H100 = Device(0, "NVIDIA H100 80GB HBM3", 80 << 30, 0, 9.0, 0)


def wrong(machine: Machine) -> list[Finding]:
    return [finding for finding in check_environment(machine) if finding.status != "ok"]


def test_the_tested_set_is_the_projects_own_lists() -> None:
    for list_ in ("cpu", "cuda", "dev"):
        text = (PROJECT / "requirements" / f"{list_}.txt").read_text()
        assert (DIRECTORY / f"{list_}.txt").read_text() == text
        assert len(pinned_versions(list_)) == text.count("==")
    assert pinned_versions("cpu")["ray"] in (PROJECT / "pyproject.toml").read_text()


def test_the_tested_set_has_nothing_wrong(tested_machine: Machine) -> None:
    assert wrong(tested_machine) == []


@pytest.mark.parametrize(
    ("package", "version", "status", "said"),
    [
        ("ray", "2.50.0", "error", "ray 2.50.0 is not ray==2.60.0, which raymb needs"),
        ("torch", "2.10.0", "error", "torch 2.10.0 is not torch"),
        ("torch", "2.11.0+cu130", None, ""),
        ("datasets", "5.2.1", "warning", "datasets 5.2.1 (tested: 5.2.0)"),
        ("six", "1.16.0", "warning", "six 1.16.0 (tested: 1.17.0)"),
        ("megatron-bridge", None, "error", "not installed: megatron-bridge"),
        ("six", None, "warning", "not installed: six"),
    ],
)
def test_a_package_that_differs(
    tested_machine: Machine, package: str, version: str | None, status: str | None, said: str
) -> None:
    packages = {**tested_machine.packages, **({package: version} if version else {})}
    if version is None:
        del packages[package]
    found = wrong(replace(tested_machine, packages=packages))
    if status is None:
        assert found == []
        return
    assert [finding.status for finding in found] == [status]
    assert said in found[0].said
    assert found[0].fix == f"pip install --no-deps {package}=={pinned_versions('cpu')[package]}"


def test_another_python(tested_machine: Machine) -> None:
    found = wrong(replace(tested_machine, python="3.13.2"))
    assert [finding.status for finding in found] == ["error"] and "3.12 only" in found[0].said


@pytest.mark.parametrize(("glibc", "fix"), [("2.39", "scripts/install-cuda"), ("2.36", "glibc 2.39"), ("", "glibc")])
def test_gpus_without_transformer_engine(tested_machine: Machine, glibc: str, fix: str) -> None:
    found = wrong(replace(tested_machine, devices=[H100], glibc=glibc))
    assert [finding.status for finding in found] == ["error"]
    assert "transformer-engine-torch" in found[0].said and fix in found[0].fix


def test_gpus_with_the_cuda_set(tested_machine: Machine) -> None:
    packages = {**tested_machine.packages, **pinned_versions("cuda")}
    machine = replace(tested_machine, devices=[H100], packages=packages)
    assert wrong(machine) == []
    packages["transformer-engine"] = "2.19.0"
    assert "transformer-engine 2.19.0 (tested: " in wrong(machine)[0].said

"""Python and packages of a machine against the versions that raymb was tested with."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

from raymb.data.cores import usable_cpus
from raymb.doctor.finding import MOST_NAMED, Finding, listed
from raymb.doctor.machine import Machine
from raymb.doctor.tested import pinned_versions
from raymb.driver.ray_start import obstacles, ray_directory

AREA = "environment"
_TOLD = ("torch", "ray", "megatron-core", "megatron-bridge", "transformers")
_CUDA_TOLD = ("transformer-engine", "nvidia-nccl-cu13")
_OF_CUDA = "transformer-engine-torch"
_GLIBC_OF_CUDA = (2, 39)
"""The glibc that the wheel of nvidia-resiliency-ext 0.6.0 needs."""


def check_environment(machine: Machine) -> Iterator[Finding]:
    yield from _python(machine)
    yield from _packages(machine)
    yield from check_cuda_packages(machine)


def check_ray_start(joins: bool = False) -> Iterator[Finding]:
    """
    Args:
        joins: a cluster will be joined, for which no Ray has to start here.
    """
    found = [
        Finding(AREA, "ray", "warning" if joins and one.of_own else "error", one.what, one.way_out)
        for one in obstacles()
    ]
    yield from found or [
        Finding(AREA, "ray", "ok", f"can start here, with {usable_cpus():g} CPUs, in {ray_directory()}")
    ]


def _python(machine: Machine) -> Iterator[Finding]:
    said = f"{machine.python} on {machine.host}, raymb {machine.raymb}, glibc {machine.glibc or 'none'}, "
    said += f"{machine.memory / 2**30:,.0f} GiB of memory"
    if machine.python.split(".")[:2] != ["3", "12"]:
        fix = "use Python 3.12: scripts/setup makes .venv with it"
        yield Finding(AREA, "python", "error", f"{said}; megatron-core and megatron-bridge are made for 3.12 only", fix)
    else:
        yield Finding(AREA, "python", "ok", said)


def _packages(machine: Machine) -> Iterator[Finding]:
    """What raymb asks for is an error where it is missing or out of its range; the rest of the set is a warning."""
    from packaging.version import Version

    pins, have, ranges = pinned_versions("cpu"), machine.packages, _ranges()
    absent = [name for name in pins if name not in have]
    wrong = [name for name, wanted in ranges.items() if name in have and not wanted.contains(have[name], True)]
    other = [
        name
        for name, pin in pins.items()
        if name in have and name not in wrong and Version(have[name]).public != Version(pin).public
    ]
    if needed := [name for name in absent if name in ranges]:
        yield Finding(AREA, "packages", "error", f"not installed: {listed(needed)}", _install(needed, pins))
    for name in wrong:
        said = f"{name} {have[name]} is not {name}{ranges[name]}, which raymb needs; tested with {pins.get(name)}"
        yield Finding(AREA, "packages", "error", said, _install([name], pins))
    if rest := [name for name in absent if name not in ranges]:
        yield Finding(AREA, "packages", "warning", f"not installed: {listed(rest)}", _install(rest, pins))
    if other:
        differing = listed([f"{name} {have[name]} (tested: {pins[name]})" for name in other])
        said = f"other versions than the tested ones: {differing}"
        yield Finding(AREA, "packages", "warning", said, _install(other, pins))
    good = len(pins) - len({*absent, *wrong, *other})
    told = ", ".join(f"{name} {have[name]}" for name in _TOLD if name in have)
    yield Finding(AREA, "packages", "ok", f"{good} of {len(pins)} as tested; {told}")


def check_cuda_packages(machine: Machine) -> Iterator[Finding]:
    """The CUDA stack, wanted where there are GPUs."""
    if not machine.devices:
        said = "not needed without GPUs: the CPU backend computes Transformer Engine's part in plain torch"
        yield Finding(AREA, "CUDA packages", "ok", said)
        return
    pins, have, fix = pinned_versions("cuda"), machine.packages, "scripts/install-cuda"
    glibc = tuple(int(part) for part in machine.glibc.split(".")) if machine.glibc else ()
    if absent := [name for name in pins if name not in have]:
        needs = ".".join(map(str, _GLIBC_OF_CUDA))
        if glibc < _GLIBC_OF_CUDA:
            fix = (
                f"use a system with glibc {needs} (Ubuntu 24.04; here: {machine.glibc}), such as raymb's Containerfile"
            )
        status = "error" if _OF_CUDA in absent else "warning"
        yield Finding(AREA, "CUDA packages", status, f"not installed: {listed(absent)}", fix)
    differing = [f"{name} {have[name]} (tested: {pin})" for name, pin in pins.items() if have.get(name, pin) != pin]
    if differing:
        said = f"other versions than the tested ones: {listed(differing)}"
        yield Finding(AREA, "CUDA packages", "warning", said, fix)
    if not absent and not differing:
        told = ", ".join(f"{name} {have[name]}" for name in _CUDA_TOLD if name in have)
        yield Finding(AREA, "CUDA packages", "ok", f"{len(pins)} as tested; {told}")


def _ranges() -> dict[str, Any]:
    """Canonical name to the versions that raymb's own metadata asks for; none where raymb runs without having been
    installed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        asked = [Requirement(text) for text in importlib.metadata.requires("raymb") or ()]
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {canonicalize_name(one.name): one.specifier for one in asked if one.marker is None}


def _install(names: list[str], pins: dict[str, str]) -> str:
    pinned = " ".join(f"{name}=={pins[name]}" for name in names[:MOST_NAMED] if name in pins)
    return "scripts/setup" if len(names) > MOST_NAMED else f"pip install --no-deps {pinned}"

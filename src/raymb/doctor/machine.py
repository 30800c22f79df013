"""What a machine says of itself: this one, or a node in a task of the cluster's. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb import __version__
from raymb.driver.host_memory import memory_of_this_machine
from raymb.runtime.child import Child

SECONDS_FOR_NVML = 20.0
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg")


@dataclass(frozen=True)
class Disk:
    """A file system. Sizes in bytes.

    Args:
        path: an existing directory on it.
    """

    path: str
    total: int
    free: int

    @property
    def used(self) -> float:
        """Share, 0 to 1."""
        return 1 - self.free / self.total if self.total else 0.0


@dataclass(frozen=True)
class Device:
    """A GPU as NVIDIA's driver describes it. Memory in bytes.

    Args:
        capability: of its architecture, such as 9.0.
        ecc_errors: uncorrected ones since the driver was loaded.
    """

    index: int
    name: str
    memory: int
    memory_used: int
    capability: float
    ecc_errors: int


@dataclass(frozen=True)
class Machine:
    """
    Args:
        host: its name.
        glibc: version; "" with another C library.
        memory: bytes, or as many as the container may have.
        packages: installed version by canonical name.
        disks: by what they are for: storage (only where a directory was named), temp and shm.
        devices: GPUs.
        driver: of NVIDIA; "" without GPUs.
        trouble: why NVIDIA's driver gives no answer though it is there; "" otherwise.
        torch_cuda: version that torch was built for; "" without.
    """

    host: str
    python: str
    raymb: str
    glibc: str
    memory: int
    packages: dict[str, str]
    disks: dict[str, Disk]
    devices: list[Device]
    driver: str
    trouble: str
    torch_cuda: str


def this_machine(storage: str | None) -> Machine:
    """Look around here.

    Args:
        storage: a directory, which need not exist yet.
    """
    devices, driver, trouble = _gpus()
    return Machine(
        host=socket.gethostname(),
        python=platform.python_version(),
        raymb=__version__,
        glibc=platform.libc_ver()[1] if platform.libc_ver()[0] == "glibc" else "",
        memory=memory_of_this_machine(),
        packages=installed_packages(),
        disks=_disks(storage),
        devices=devices,
        driver=driver,
        trouble=trouble,
        torch_cuda=torch_cuda(),
    )


def installed_packages() -> dict[str, str]:
    from packaging.utils import canonicalize_name

    found: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        with contextlib.suppress(KeyError, TypeError):  # a broken .dist-info has no name
            found.setdefault(canonicalize_name(one.metadata["Name"]), one.version)
    return found


def torch_cuda() -> str:
    """From torch's version.py: importing torch takes seconds, and loads libraries that may be what is broken."""
    spec = importlib.util.find_spec("torch")
    for place in (spec and spec.submodule_search_locations) or ():
        with contextlib.suppress(OSError):
            text = Path(place, "version.py").read_text(encoding="utf-8")
            if found := re.search(r"^cuda\b.*=\s*'([\d.]+)'", text, re.M):
                return found[1]
    return ""


def disk_of(path: str | Path) -> Disk:
    """The file system of a path, or of the nearest directory above it that exists."""
    place = nearest(path)
    usage = shutil.disk_usage(place)
    return Disk(str(place), usage.total, usage.free)


def nearest(path: str | Path) -> Path:
    """The path or its nearest parent that exists: a check creates nothing."""
    place = Path(path).expanduser().absolute()
    return next(above for above in (place, *place.parents) if above.exists())


def can_write(directory: Path) -> bool:
    """By doing it: os.access tells root that all can be written."""
    try:
        tempfile.TemporaryFile(dir=directory).close()
    except OSError:
        return False
    return True


def _disks(storage: str | None) -> dict[str, Disk]:
    places = {
        "storage": storage,
        "temp": os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(),
        "shm": "/dev/shm",
    }
    return {name: disk_of(path) for name, path in places.items() if path is not None}


def huggingface_home() -> str:
    """Where models are kept, by huggingface_hub's rule."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.expanduser(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface"))


def _gpus() -> tuple[list[Device], str, str]:
    """(GPUs, the driver's version, trouble)."""
    if shutil.which("nvidia-smi") is None and not any(Path(file).exists() for file in _DEVICE_FILES):
        return [], "", ""
    process = Child("raymb.doctor.nvml", {}).process
    try:
        text, errors = process.communicate(timeout=SECONDS_FOR_NVML)
    except subprocess.TimeoutExpired:
        process.kill()  # with a broken driver not even that ends it: nobody waits
        return [], "", f"NVIDIA's driver gives no answer within {SECONDS_FOR_NVML:g} s"
    if process.returncode:
        return [], "", " ".join(errors.split())[-300:] or f"asking NVIDIA's driver ended with {process.returncode}"
    answer = json.loads(text.splitlines()[-1])
    return (
        [Device(**device) for device in answer.get("devices", ())],
        answer.get("driver", ""),
        answer.get("trouble", ""),
    )


def from_dict(values: Mapping[str, Any]) -> Machine:
    """The inverse of dataclasses.asdict, which a node's answer has been through."""
    disks = {name: Disk(**disk) for name, disk in values["disks"].items()}
    return Machine(**{**values, "disks": disks, "devices": [Device(**device) for device in values["devices"]]})

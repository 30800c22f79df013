"""Room for checkpoints, Ray's files and models on a machine, and whether the storage can be written."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.doctor.finding import Finding
from raymb.doctor.machine import Disk, Machine, can_write, nearest
from raymb.errors import RunDirError
from raymb.plan.gpus import GIB
from raymb.storage.remote import check_writable, is_uri

AREA = "storage"
_CHECKPOINT_BYTES, _EXPORT_BYTES = 14, 2
"""Bytes a parameter: bf16 weight, fp32 main weight and two moments in a checkpoint; bf16 in an export."""
_KEPT = 2
"""Checkpoints at least: a new one is whole before an old one goes."""
USUAL_PARAMETERS = 500_000_000
"""Of a small model, which is assumed where none is named."""
_FULL = 0.95
"""Share from which on Ray starts no more tasks (local_fs_capacity_threshold)."""
_LEAST_SHM = 1 * GIB
"""NCCL's buffers between the GPUs of a machine, and torch's loaders; containers have 64 MiB by default."""


def room_for_a_run(parameters: int) -> int:
    """Bytes that checkpoints and the export of a model take."""
    return parameters * (_KEPT * _CHECKPOINT_BYTES + _EXPORT_BYTES)


def check_storage_path(storage_path: str) -> Iterator[Finding]:
    """Whether runs can be written: a directory or a URI."""
    if is_uri(storage_path):
        try:
            check_writable(storage_path)
        except RunDirError as error:
            yield Finding(AREA, "storage_path", "error", error.message, error.hint)
        else:
            yield Finding(AREA, "storage_path", "ok", f"{storage_path} can be written, listed, read and deleted from")
        return
    place = nearest(storage_path)
    if not place.is_dir() or not can_write(place):
        what = "cannot be written" if place.is_dir() else "is no directory"
        yield Finding(AREA, "storage_path", "error", f"{place} {what}", "name another directory: --storage_path DIR")
    else:
        yield Finding(AREA, "storage_path", "ok", f"{storage_path} can be written")


def check_disks(machine: Machine, parameters: int | None) -> Iterator[Finding]:
    """
    Args:
        parameters: of the model, where one is known.
    """
    disks = machine.disks
    if "storage" in disks:
        yield _storage(disks["storage"], parameters)
    temp = disks["temp"]
    if temp.used > _FULL:
        said = f"{temp.path} is {temp.used:.0%} full, and Ray stops starting tasks at {_FULL:.0%}"
        yield Finding(AREA, "temp", "error", said, "free space there, or name another directory: RAY_TMPDIR=DIR")
    else:
        yield Finding(AREA, "temp", "ok", f"{_free(temp)}, for Ray's files")
    if disks["shm"].total < _LEAST_SHM:
        said = f"/dev/shm has {disks['shm'].total / GIB:.2g} GiB, and NCCL and Ray want {_LEAST_SHM / GIB:g} or more"
        yield Finding(AREA, "shm", "warning", said, "start the container with --shm-size=16g (or --ipc=host)")


def _storage(disk: Disk, parameters: int | None) -> Finding:
    needed = room_for_a_run(parameters or USUAL_PARAMETERS)
    model = f"{(parameters or USUAL_PARAMETERS) / 1e9:.3g}B parameters"
    said = f"{_free(disk)}; {_KEPT} checkpoints and an export of {model} take {needed / GIB:.3g}"
    if disk.free < needed:
        fix = "free space, or name another --storage_path; --keep_last 1 keeps the least"
        return Finding(AREA, "room", "error" if parameters else "warning", said, fix)
    return Finding(AREA, "room", "ok", said)


def _free(disk: Disk) -> str:
    return f"{disk.free / GIB:,.0f} of {disk.total / GIB:,.0f} GiB free at {disk.path}"

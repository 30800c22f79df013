"""A checkpoint at a URI, on the machines of a run: each has the files that its ranks read, and no other.

First every file is fetched and its checksum compared once, on the machine of one rank: of the rank of its number, which
with the same layout is the one that reads most of it. So the ranks agree on whether a checkpoint is whole without a
machine reading all of it. What is read of other ranks' files is fetched when torch's reader comes to it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.agreement import from_all_ranks
from raymb.checkpoints.remote import Files, RemoteCheckpoints
from raymb.errors import StorageError
from raymb.storage.sharing import alone

_PART = re.compile(r"__(\d+)_\d+\.distcp")


def fetch(remote: RemoteCheckpoints, directory: str) -> str:
    """Have on every machine its share of a checkpoint. Collective.

    Returns:
        what is wrong with the checkpoint, "" if nothing is; the same on all ranks.
    """
    first_here = local_rank() == 0
    from_all_ranks(lambda: remote.begin(directory) if first_here else None)
    mine = _share(_files(directory), dist.get_rank(), dist.get_world_size(), first_here)
    problems = from_all_ranks(lambda: remote.have(directory, mine) if mine else _lacks_manifest(directory))
    return next((problem for problem in problems if problem), "")


def fetch_what_is_read(remote: RemoteCheckpoints) -> None:
    """Have torch's reader fetch the files that it is about to read of this run's checkpoints, if they are not here."""
    read = FileSystemReader.read_data

    def read_data(self: Any, plan: Any, planner: Any) -> Any:
        directory = Path(self.path)
        if remote.holds(directory):
            names = {self.storage_data[item.storage_index].relative_path for item in plan.items}
            _fetch_files(remote, directory, names)
        return read(self, plan, planner)

    FileSystemReader.read_data = read_data


def local_rank() -> int:
    """This rank's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _fetch_files(remote: RemoteCheckpoints, directory: Path, names: set[str]) -> None:
    """One rank of a machine after the other: what they read is much the same."""
    with alone(directory.with_name(f".{directory.name}.lock")):
        problem = remote.have(
            str(directory), {name: entry for name, entry in _files(str(directory)).items() if name in names}
        )
    if problem:
        raise StorageError(f"{directory} cannot be read: {problem}", "the next start looks at it again")


def _share(files: Files, rank: int, ranks: int, first_here: bool) -> Files:
    """The files that a rank fetches: the parts of its number, and those that all read for the first of a machine."""
    parts = {name: match for name in files if (match := _PART.fullmatch(name))}
    return {
        name: entry
        for name, entry in files.items()
        if (int(parts[name][1]) % ranks == rank if name in parts else first_here)
    }


def _files(directory: str) -> Files:
    return (checkpoint.read_manifest(directory) or {"files": {}})["files"]


def _lacks_manifest(directory: str) -> str:
    return "" if checkpoint.read_manifest(directory) else f"no {checkpoint.MANIFEST}"

"""`torchrun machine_ranks.py TASKS`: each rank is a machine of its own with a workspace of its own, HOME/RANK.

TASKS/N.json is a task, {"uri", "home"}: each rank writes, as TASKS/N-RANK.json, where it resumes, what was said, and
which files it has then and when it reads a tensor of rank 1's part. TASKS/end ends them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader

from raymb.checkpoints.fetching import fetch_what_is_read
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.checkpoints.resuming import where_to_resume
from raymb.storage.remote import Remote

TASKS, READ_DATA = Path(sys.argv[1]), FileSystemReader.read_data


class Reader(FileSystemReader):
    """As Megatron-Core's reader is: derived from torch's."""


def files(directory: str | None) -> list[str]:
    return sorted(path.name for path in Path(directory or "none").glob("*"))


def read_a_tensor(remote: RemoteCheckpoints, directory: str) -> list[str]:
    """The files that are there when torch reads."""
    seen: list[str] = []
    FileSystemReader.read_data = lambda self, plan, planner: seen.extend(files(directory))
    fetch_what_is_read(remote)
    reader: Any = Reader(directory)
    reader.storage_data = {"weights": SimpleNamespace(relative_path="__1_0.distcp")}
    reader.read_data(SimpleNamespace(items=[SimpleNamespace(storage_index="weights")]), None)
    FileSystemReader.read_data = READ_DATA
    return seen


def answer(uri: str, home: str) -> dict[str, Any]:
    run_dir = Path(home, str(dist.get_rank()), "run")
    remote = RemoteCheckpoints(Remote(uri), run_dir)
    said: list[Any] = []
    found = where_to_resume(str(run_dir / "checkpoints"), "auto", said.append, remote)
    first = files(found)
    return {
        "found": found and str(Path(found).relative_to(run_dir)),
        "said": [one["text"] for one in said],
        "first": first,
        "read": read_a_tensor(remote, found) if found else [],
        "content": [Path(found or "", name).read_text() for name in files(found) if name.startswith("__")],
    }


dist.init_process_group("gloo")
os.environ["LOCAL_RANK"] = "0"
number = 0
while not (TASKS / "end").exists():
    if not (task := TASKS / f"{number}.json").exists():
        time.sleep(0.05)
        continue
    part = TASKS / f".{number}-{dist.get_rank()}"
    part.write_text(json.dumps(answer(**json.loads(task.read_text()))))
    part.rename(TASKS / f"{number}-{dist.get_rank()}.json")
    number += 1
dist.destroy_process_group()

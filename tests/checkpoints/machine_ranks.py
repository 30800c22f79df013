"""`torchrun machine_ranks.py URI DIR OUT`: each rank is a machine of its own with a workspace of its own, DIR/RANK; it
writes where it resumes, what was said, and which files it has then and after it has read a tensor of each part."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader

from raymb.checkpoints.fetching import fetch_what_is_read
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.checkpoints.resuming import where_to_resume
from raymb.storage.remote import Remote

dist.init_process_group("gloo")
os.environ["LOCAL_RANK"] = "0"
uri, place, out = sys.argv[1:]
run_dir = Path(place, str(dist.get_rank()), "run")
remote = RemoteCheckpoints(Remote(uri), run_dir)
said: list[dict[str, Any]] = []
found = where_to_resume(str(run_dir / "checkpoints"), "auto", said.append, remote)


def files() -> list[str]:
    return sorted(path.name for path in Path(found or "none").glob("*") if not path.name.endswith(".lock"))


first, read = files(), []
if found:

    class Reader(FileSystemReader):
        """What Megatron-Core's reader is: torch's."""

    FileSystemReader.read_data = lambda self, plan, planner: read.extend(files())
    fetch_what_is_read(remote)
    reader = Reader(found)
    reader.storage_data = {"weights": SimpleNamespace(relative_path="__1_0.distcp")}
    reader.read_data(SimpleNamespace(items=[SimpleNamespace(storage_index="weights")]), None)
answer = {
    "found": found and str(Path(found).relative_to(run_dir)),
    "said": [one["text"].replace(str(run_dir), "RUN") for one in said],
    "first": first,
    "read": read,
    "content": [Path(found, name).read_text() for name in files() if name.startswith("__")] if found else [],
}
Path(out, f"{dist.get_rank()}.json").write_text(json.dumps(answer))
dist.destroy_process_group()

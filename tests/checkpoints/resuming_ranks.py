"""`torchrun resuming_ranks.py CHECKPOINTS RESUME OUT`: each rank writes where it resumes, what it says and reads, and
which steps it leaves out where rank 0 alone sees the file that says so, and where that file is damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.resuming import steps_left_out, where_to_resume

dist.init_process_group("gloo")
read: list[str] = []
sha256 = checkpoint._sha256


def counting(path: Path) -> str:
    read.append(f"{path.parent.name}/{path.name}")
    return sha256(path)


checkpoint._sha256 = counting
said: list[dict[str, Any]] = []
found = where_to_resume(sys.argv[1], sys.argv[2], said.append)
mine = Path(sys.argv[3], f"checkpoints-of-{dist.get_rank()}")
mine.mkdir()
if dist.get_rank() == 0:
    checkpoint.leave_out(mine, 7)
left_out = steps_left_out(str(mine))
(mine / checkpoint.LEFT_OUT).write_text("[7" if dist.get_rank() == 0 else "[8]")
try:
    damaged = str(steps_left_out(str(mine)))
except ValueError as error:
    damaged = type(error).__name__
Path(sys.argv[3], f"{dist.get_rank()}.json").write_text(
    json.dumps({"found": found, "said": [one["text"] for one in said], "read": read, "left out": [left_out, damaged]})
)
dist.destroy_process_group()

"""Megatron-Core's own writer on raymb's thread: what is in a checkpoint is the state of its step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM, SOURCES = Path(__file__).with_name("writing.py"), Path(__file__).parents[2] / "src"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_checkpoint_of_tensors_on_the_host_is_not_torn_by_the_next_step(device: str, tmp_path: Path) -> None:
    """The optimizer's state of an offloaded AdamW went to the thread without a copy, and the next step changed it
    before it was written; its SHA-256, taken afterwards, said that all was well."""
    path = os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(tmp_path), device]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).glob("__0_*.distcp")}
        for name in ("synchronous", "asynchronous")
    ]
    assert contents[0] and contents[0] == contents[1]

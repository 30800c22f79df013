"""Ranks that wait for what rank 0 does alone: longer than a collective may take, and without being watched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src"
RANK = """
import sys, time
from datetime import timedelta
import torch.distributed as dist
from raymb.bridge.collectives import wait_for_first
from raymb.rank.hang import HangWatch
from raymb.rank.progress import Progress

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=float(sys.argv[3]))
)
progress = Progress()
progress.enter("exporting")
HangWatch(progress, 60, None, dict, print)
for _ in range(2):
    began = time.monotonic()
    if rank == 0:
        time.sleep(4)
        wait_for_first(progress)
    elif sys.argv[4] == "barrier":
        dist.barrier()
    else:
        wait_for_first(progress)
    print(f"{time.monotonic() - began:.1f}", progress.waits, progress.beats)
"""


def _rank(rank: int, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RANK, str(rank), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES)},
    )


def test_the_wait_is_longer_than_a_collective_may_be(tmp_path: Path) -> None:
    ranks = [_rank(rank, tmp_path / "store", 1.5, "store") for rank in range(2)]
    (_, first_error), (second, second_error) = (rank.communicate(timeout=300) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], first_error + second_error
    waited = [line.split() for line in second.splitlines()]
    assert all(float(seconds) > 2 for seconds, _, _ in waited) and len(waited) == 2
    assert [(waits, beats) for _, waits, beats in waited] == [("False", "2"), ("False", "3")]


def test_a_barrier_would_have_failed(tmp_path: Path) -> None:
    """So that the test above shows something."""
    ranks = [_rank(rank, tmp_path / "store", 1.5, "barrier") for rank in range(2)]
    error = [rank.communicate(timeout=300)[1] for rank in ranks][1]
    assert ranks[1].returncode == 1 and "imed out" in error, error

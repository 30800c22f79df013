"""Collectives on two gloo ranks: what gloo lacks, and the stand-in's parallel layers against one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def output() -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(CHECKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    "check",
    [
        "all_to_all_of_lists",
        "all_to_all_with_tensor_splits",
        "uneven_all_gather",
        "uneven_reduce_scatter",
        "column_then_row",
        "column_then_row_with_sequence_parallel",
        "cross_entropy",
        "context_parallel_attention",
        "context_parallel_packed_attention",
        "context_parallel_rope",
    ],
)
def test_check_holds_on_both_ranks(check: str, output: str) -> None:
    assert output.count(f"{check}: ok") == 2, output

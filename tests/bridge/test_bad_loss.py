"""What stands between a bad loss and the weights, on two gloo ranks with the CPU accelerator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM, SOURCES = Path(__file__).with_name("bad_loss_ranks.py"), Path(__file__).parents[2] / "src"
CHECKS = [
    "good_steps_go_through",
    "nan_and_infinity_reach_no_weight",
    "rollback_leaves_the_step_out_once_for_all_ranks",
    "skip_leaves_the_update_out_and_continues",
    "too_many_in_a_row_end_the_run",
    "without_loss_spike_no_step_costs_a_collective",
    "a_step_has_one_loss_on_all_ranks",
    "a_spike_is_seen_by_every_rank",
    "a_spike_needs_a_history",
    "the_usual_follows_the_last_steps_and_no_spike",
    "nan_is_told_before_a_spike",
    pytest.param(
        "a_validation_between_is_not_part_of_the_step",
    ),
]


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Of each rank: what was wrong by check."""
    out = tmp_path_factory.mktemp("bad-loss")
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(PROGRAM), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=180, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("check", CHECKS)
def test_check_holds_on_both_ranks(check: str, wrong: list[dict[str, str]]) -> None:
    assert [of_rank[check] for of_rank in wrong] == ["", ""]


def test_no_check_is_forgotten(wrong: list[dict[str, str]]) -> None:
    assert list(wrong[0]) == [check if isinstance(check, str) else check.values[0] for check in CHECKS]

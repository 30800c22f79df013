"""Which runs validate before their first step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import resolved_job

from raymb.bridge.baseline import begins_with_a_validation
from raymb.model.shape import read_model_shape
from raymb.run.job import Job
from raymb.spec import load_spec


def job_with(directory: Path, model: Path, rows: int, **flags: Any) -> Job:
    flags = {"hf_model_path": str(model), "num_workers": 1, "global_batch_size": 10, "train_iters": 100, **flags}
    return replace(resolved_job(load_spec(flags), read_model_shape(str(model)), directory, "cpu"), validation_rows=rows)


@pytest.mark.parametrize(("rows", "begins"), [(59, True), (60, False)])
def test_auto_validates_first_where_that_costs_less_than_2_percent(
    rows: int, begins: bool, tmp_path: Path, shape_only_model_dir: Path
) -> None:
    """100 steps of 10 samples, each a forward pass and a backward one of twice its cost: 3,000 forward passes."""
    assert begins_with_a_validation(job_with(tmp_path, shape_only_model_dir, rows)) is begins


@pytest.mark.parametrize(
    ("flags", "rows", "begins"),
    [
        ({"eval_at_start": True}, 900, True),
        ({"eval_at_start": False}, 1, False),
        ({"eval_at_start": True}, 0, False),
        ({"eval_interval": 0}, 1, False),
    ],
)
def test_the_flag_decides_where_there_are_validations(
    flags: dict[str, Any], rows: int, begins: bool, tmp_path: Path, shape_only_model_dir: Path
) -> None:
    assert begins_with_a_validation(job_with(tmp_path, shape_only_model_dir, rows, **flags)) is begins


def test_a_checkpoint_that_is_resharded_is_not_validated(tmp_path: Path, shape_only_model_dir: Path) -> None:
    job = job_with(tmp_path, shape_only_model_dir, 1, eval_at_start=True)
    assert not begins_with_a_validation(replace(job, task="reshape"))

"""What the driver hands to the workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymb.job import with_absolute_paths
from raymb.spec import load_spec


def test_relative_paths_mean_the_same_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = with_absolute_paths(
        load_spec({"hf_model_path": "a/b", "storage_path": "runs", "resume": "old", "output_dir": "out"})
    )
    assert spec.run.storage_path == str(tmp_path / "runs")
    assert (spec.checkpoint.resume, spec.checkpoint.output_dir) == (str(tmp_path / "old"), tmp_path / "out")
    given = {"hf_model_path": "a/b", "storage_path": "s3://bucket/prefix", "resume": "never"}
    spec = with_absolute_paths(load_spec(given))
    assert (spec.run.storage_path, spec.checkpoint.resume) == ("s3://bucket/prefix", "never")
    assert spec.checkpoint.output_dir is None

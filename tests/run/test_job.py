"""What the driver hands to the workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import QWEN2_4_LAYERS, resolved_job

from raymb.model.shape import ModelShape
from raymb.plan.rules import Run, gpu_only
from raymb.run.job import with_absolute_paths
from raymb.spec import RunSpec, load_spec


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


def test_cpu_workers_that_only_read_a_checkpoint_need_no_gpu(tmp_path: Path) -> None:
    flags = {"hf_model_path": "some/model", "activation_offload_layers": "1", "optimizer_moments": "bf16"}
    flags |= {"optimizer_offload": "0", "recompute": "none"}
    shape = ModelShape.from_config(QWEN2_4_LAYERS)
    job = resolved_job(load_spec(flags), shape, tmp_path, "cuda")

    def gpu_only_problems(spec: RunSpec, backend: str) -> Iterator[str]:
        return gpu_only.settings(Run(spec, shape, backend))

    for derived in (job.on_cpus(), job.alone()):
        assert not list(gpu_only_problems(derived.spec, derived.backend)) and derived.backend == "cpu"
    assert list(gpu_only_problems(job.spec, "cpu"))

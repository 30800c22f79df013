"""When a checkpoint must be written again for another layout, and the job that does it."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS, resolved_job

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.format import check_format, newest, optimizer_format, optimizer_layout
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.driver.resharding import described, reshaping, to_reshape
from raymb.errors import RunDirError
from raymb.model.shape import ModelShape
from raymb.run.job import Job
from raymb.spec import load_spec

DENSE, MOE = ModelShape.from_config(QWEN2_4_LAYERS), ModelShape.from_config(QWEN3_MOE_4_LAYERS)
TP, PP, CP, EP = (f"{name}_parallel_size" for name in ("tensor", "pipeline", "context", "expert"))


def _job(tmp_path: Path, shape: ModelShape = DENSE, **flags: Any) -> Job:
    given = {"hf_model_path": "some/model", "global_batch_size": 8, "train_iters": 40, "save_interval": 10, **flags}
    spec = load_spec({name: str(value) for name, value in given.items()})
    return resolved_job(spec, shape, tmp_path, "cuda")


def _resuming(job: Job, directory: Path) -> Job:
    settings = job.spec.checkpoint.model_copy(update={"resume": str(directory)})
    return replace(job, spec=job.spec.model_copy(update={"checkpoint": settings}))


def _saved(job: Job, step: int, home: Path | None = None, **state: Any) -> Path:
    """A checkpoint with the manifest that raymb.bridge.saving writes."""
    directory = Path(checkpoint.iteration_dir(home or job.checkpoint_dir, step))
    directory.mkdir(parents=True)
    (directory / "__0_0.distcp").write_bytes(b"weights")
    known = {
        "step": step,
        "layout": optimizer_layout(job.layout),
        "copies": job.layout.data_parallel_size * job.layout.context_parallel_size,
        "precision": "bf16",
        "any_layout": False,
    }
    checkpoint.write_manifest(directory, checkpoint.describe_files(directory.iterdir()), {**known, **state})
    return directory


SAME = [
    ({TP: 2, "num_workers": 4}, {TP: 2, "num_workers": 8}),  # more copies
    ({TP: 2, "num_workers": 4}, {TP: 2, CP: 2, "num_workers": 4}),
    ({TP: 2, "num_workers": 4}, {TP: 2, "num_workers": 4, "micro_batch_size": 2}),
]
OTHER = [
    ({TP: 2, "num_workers": 4}, {TP: 4, "num_workers": 4}),
    ({TP: 2, "num_workers": 4}, {PP: 2, "num_workers": 4}),
    ({PP: 2, "num_workers": 4}, {PP: 2, "num_workers": 4, "virtual_pipeline_parallel_size": 2}),
]


@pytest.mark.parametrize(
    ("before", "now", "again"), [*((*pair, False) for pair in SAME), *((*pair, True) for pair in OTHER)]
)
def test_another_cut_of_the_model_needs_the_checkpoint_again(
    tmp_path: Path, before: dict[str, int], now: dict[str, int], again: bool
) -> None:
    old = _job(tmp_path, **before)
    directory = _saved(old, 10)
    job = _job(tmp_path, **now)
    assert to_reshape(job) == (directory if again else None)
    assert to_reshape(old) is None


def test_another_spread_of_the_experts_needs_the_checkpoint_again(tmp_path: Path) -> None:
    directory = _saved(_job(tmp_path, MOE, **{EP: 2, "num_workers": 4}), 10)
    job = _job(tmp_path, MOE, **{EP: 4, "num_workers": 4})
    assert to_reshape(job) == directory


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_weights_of_another_precision_need_the_checkpoint_again(tmp_path: Path, precision: str) -> None:
    """GPUs' bf16 is resumed in CPUs' fp32, and the other way round."""
    job = _job(tmp_path, precision=precision)
    directory = _saved(job, 10, precision="fp32" if precision == "bf16" else "bf16")
    assert to_reshape(job) == directory
    _saved(job, 20, precision=precision)
    assert to_reshape(job) is None
    directory = directory.with_name("iter_0000020")
    assert to_reshape(_job(tmp_path, precision="fp8")) == (None if precision == "bf16" else directory)


def test_what_every_layout_can_read_is_not_written_again(tmp_path: Path) -> None:
    old, job = _job(tmp_path, **{TP: 2, "num_workers": 4}), _job(tmp_path, **{TP: 4, "num_workers": 4})
    _saved(old, 10, any_layout=True)
    assert to_reshape(job) is None


def test_once_written_again_it_is_the_one_to_resume_from(tmp_path: Path) -> None:
    old, job = _job(tmp_path, **{TP: 2, "num_workers": 4}), _job(tmp_path, **{TP: 4, "num_workers": 4})
    _saved(old, 5)
    directory = _saved(old, 10)
    assert to_reshape(job) == directory
    again = _saved(old, 10, checkpoint.reshaped(job.checkpoint_dir), any_layout=True)
    assert to_reshape(job) is None
    assert newest(job.checkpoint_dir, "auto") == again
    (again / checkpoint.MANIFEST).unlink()  # the driver died in the middle of it
    assert to_reshape(job) == directory


def test_the_newest_that_is_whole_decides(tmp_path: Path) -> None:
    old, job = _job(tmp_path, **{TP: 2, "num_workers": 4}), _job(tmp_path, **{TP: 4, "num_workers": 4})
    _saved(job, 5)
    newer = _saved(old, 10)
    assert to_reshape(job) == newer
    (newer / "__0_0.distcp").unlink()
    assert to_reshape(job) is None


def test_resume_path_counts_where_the_run_has_nothing_of_its_own(tmp_path: Path) -> None:
    old, job = _job(tmp_path, **{TP: 2, "num_workers": 4}), _job(tmp_path, **{TP: 4, "num_workers": 4})
    other = _saved(old, 50, tmp_path / "other")
    for resume in (tmp_path / "other", other):
        assert to_reshape(_resuming(job, resume)) == other
    assert to_reshape(job) is None
    _saved(job, 5)
    assert to_reshape(_resuming(job, other)) is None


def test_of_a_run_at_a_uri_the_manifests_there_decide(tmp_path: Path) -> None:
    """This machine may have nothing of it, or what an earlier run left."""
    there: Any = {"storage_path": f"memory://{uuid.uuid4().hex}"}
    old, job = (
        _job(tmp_path, **{TP: 2, "num_workers": 4}, **there),
        _job(tmp_path, **{TP: 4, "num_workers": 4}, **there),
    )
    remote = RemoteCheckpoints.of(job)
    assert remote is not None
    directory, stale, other = _saved(old, 10), _saved(old, 20), _saved(old, 50, tmp_path / "other")
    remote.remote.upload(directory, "checkpoints/iter_0000010")
    shutil.rmtree(directory)
    assert to_reshape(job) == directory and to_reshape(old) is None
    assert reshaping(job, directory).layout.tensor_parallel_size == 2
    (other / "__0_0.distcp").unlink()
    remote.delete(directory)
    assert to_reshape(job) is None and stale.exists()
    assert newest(job.checkpoint_dir, str(other), remote) is None, "--resume PATH is here"


def test_nothing_there_and_nothing_known_about_it(tmp_path: Path) -> None:
    job = _job(tmp_path)
    assert newest(job.checkpoint_dir, "auto") is None and to_reshape(job) is None
    directory = _saved(job, 10)
    checkpoint.write_manifest(directory, checkpoint.describe_files([directory / "__0_0.distcp"]), {"step": 10})
    assert to_reshape(job) is None


def test_the_job_that_writes_it_again(tmp_path: Path) -> None:
    old = _job(tmp_path, **{TP: 2, PP: 2, CP: 2, "num_workers": 16, "lr_warmup_iters": 5, "keep_last": 1})
    directory = _saved(old, 10)
    job = _job(tmp_path, **{TP: 4, "num_workers": 4, "lr_warmup_iters": 5, "keep_last": 1})
    again = reshaping(job, directory)
    assert optimizer_layout(again.layout) == optimizer_layout(old.layout)
    sizes = (again.layout.num_workers, again.layout.data_parallel_size, again.layout.context_parallel_size)
    assert sizes == (4, 1, 1)
    assert again.layout.micro_batch_size * again.layout.micro_batches * 1 == again.layout.global_batch_size
    assert (again.backend, again.task, again.load_dir) == ("cpu", "reshape", str(directory))
    assert again.train_iters == 10, "not a step is trained"
    assert Path(again.checkpoint_dir) == Path(job.checkpoint_dir, "reshaped")
    assert again.spec.train.precision == "bf16", "the state is that of the run that wrote it, on a CPU, too"
    assert (again.spec.optimizer.lr_warmup_iters, again.spec.checkpoint.keep_last) == (0, 0)
    assert again.spec.checkpoint.export_hf is False and again.spec.checkpoint.save_interval == 0
    assert (again.validation_rows, again.test_rows) == (0, 0)
    assert again.of_size(4).plan == again.plan, "no plan of another size is in its way"
    assert Job.from_json(again.to_json()) == again
    assert job.layout.tensor_parallel_size == 4 and job.spec.checkpoint.keep_last == 1, (
        "the run's own job stays as it is"
    )


EXPERTS = [
    pytest.param({EP: 2, "num_workers": 2}, 2, id="over the copies"),
    pytest.param({EP: 2, "num_workers": 4}, 4, id="over some of the copies"),
    pytest.param({TP: 2, EP: 4, "num_workers": 8, "sequence_parallel": "true"}, 8, id="tensor"),
    pytest.param(
        {CP: 2, EP: 2, "num_workers": 2},
        2,
        id="over the context",
    ),
]


@pytest.mark.parametrize(("flags", "workers"), EXPERTS)
def test_experts_are_read_by_as_many_as_they_are_spread_over(
    tmp_path: Path, flags: dict[str, Any], workers: int
) -> None:
    old = _job(tmp_path, MOE, **flags)
    layout = reshaping(_job(tmp_path, MOE, num_workers=4, **{EP: 4}), _saved(old, 10)).layout
    pieces = layout.expert_tensor_parallel_size * layout.expert_parallel_size * layout.pipeline_parallel_size
    assert layout.num_workers % pieces == 0, "Megatron's rule"
    assert layout.num_workers == workers


def test_a_layout_in_words(tmp_path: Path) -> None:
    assert described(_job(tmp_path, **{TP: 2, PP: 2, "num_workers": 4})) == "TP 2 x PP 2 in bf16"
    assert described(_job(tmp_path, MOE, **{EP: 4, "num_workers": 4})) == "TP 1 x PP 1 x EP 4 in bf16"


@pytest.mark.parametrize("flag", ["distributed_optimizer", "grad_reduce_in_fp32"])
def test_an_optimizer_of_another_format_is_refused_before_workers_start(tmp_path: Path, flag: str) -> None:
    usual, other = _job(tmp_path), _job(tmp_path, **{flag: False})
    check_format(usual.checkpoint_dir, other.spec)  # nothing was written
    _saved(usual, 10)  # as before there was a choice
    check_format(usual.checkpoint_dir, usual.spec)
    with pytest.raises(RunDirError, match=f"was written with --{flag}, .* under --no_{flag}"):
        check_format(usual.checkpoint_dir, other.spec)
    _saved(usual, 20, optimizer_format=optimizer_format(other.spec))
    check_format(usual.checkpoint_dir, other.spec)
    with pytest.raises(RunDirError, match=f"was written with --no_{flag}, .* under --{flag}"):
        check_format(usual.checkpoint_dir, usual.spec)

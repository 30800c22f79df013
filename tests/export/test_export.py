"""What `raymb export` refuses before it loads anything, and the job that it makes of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, resolved_job, write_shape_only_model

from raymb.checkpoints.manifest import describe_files, iteration_dir, write_manifest
from raymb.cli import main
from raymb.errors import ModelError, RunDirError
from raymb.export.later import ExportRequest, checked_job, exporting_job
from raymb.model.shape import read_model_shape
from raymb.run.fingerprint import model_group
from raymb.spec import load_spec


def _run(tmp_path: Path, *steps: int, **flags: Any) -> Path:
    """A run directory with checkpoints of these steps that are whole as far as their manifests tell."""
    model = write_shape_only_model(tmp_path / "model")
    given = {"hf_model_path": model, "num_workers": 4, "tensor_parallel_size": 2, "pipeline_parallel_size": 2, **flags}
    spec = load_spec({name: str(value) for name, value in given.items()})
    shape, run = read_model_shape(str(model)), tmp_path / "run"
    run.mkdir(parents=True)
    (run / "job.json").write_text(resolved_job(spec, shape, tmp_path, "cpu", str(model)).to_json())
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "manifest.json").write_text(json.dumps({"files": {}}))
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "fingerprint.json").write_text(json.dumps({"model": model_group(str(model), None)}))
    for step in steps:
        directory = Path(iteration_dir(run / "checkpoints", step))
        directory.mkdir()
        (directory / "__0_0.distcp").write_bytes(b"weights")
        write_manifest(directory, describe_files(directory.iterdir()), {"step": step, "metric": 1.0 / step})
    return run


def test_the_job_of_one_cpu_worker(tmp_path: Path) -> None:
    run = _run(tmp_path, 5, 10)
    job = exporting_job(checked_job(ExportRequest(run, dtype="bf16")))
    sizes = [
        getattr(job.layout, f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "data", "expert", "context")
    ]
    assert sizes == [1] * 5 and job.layout.num_workers == 1 and job.backend == "cpu"
    assert job.plan.padded_vocab_size == job.vocab_size == 305
    assert job.load_dir == iteration_dir(run / "checkpoints", 10)
    assert (job.hf_dir, job.spec.train.precision) == (str(run / "hf"), "bf16")
    assert checked_job(ExportRequest(run)).spec.checkpoint.export_dtype == "source"
    assert checked_job(ExportRequest(run, which="5")).load_dir == iteration_dir(run / "checkpoints", 5)
    assert checked_job(ExportRequest(run, which="best")).load_dir == iteration_dir(run / "checkpoints", 10)
    elsewhere = checked_job(ExportRequest(run, to=tmp_path / "out", dtype="bf16"))
    assert (elsewhere.hf_dir, elsewhere.spec.checkpoint.export_dtype) == (str(tmp_path / "out"), "bf16")


def test_the_places_of_adapter_and_merged_model(tmp_path: Path) -> None:
    run = _run(tmp_path, 5, peft="lora")
    job = checked_job(ExportRequest(run, merge=True))
    assert (job.adapter_dir, job.hf_dir, job.spec.checkpoint.merge) == (str(run / "adapter"), str(run / "hf"), True)
    job = checked_job(ExportRequest(run, merge=True, to=tmp_path / "out"))
    assert (job.adapter_dir, job.hf_dir) == (str(tmp_path / "out"), str(tmp_path / "out-merged"))


def test_a_run_that_was_moved(tmp_path: Path) -> None:
    moved = _run(tmp_path, 5).rename(tmp_path / "moved")
    job = checked_job(ExportRequest(moved))
    assert Path(job.load_dir).is_relative_to(moved) and Path(job.hf_dir).is_relative_to(moved)


def test_rows_that_were_moved_with_the_run_and_rows_that_are_gone(tmp_path: Path) -> None:
    _run(tmp_path / "old", 5)
    (tmp_path / "old").rename(tmp_path / "new")
    former = tmp_path / "old" / "model"
    former.parent.mkdir()
    (tmp_path / "new" / "model").rename(former)
    prepared = tmp_path / "new" / "old" / "rows"
    prepared.parent.mkdir()
    (tmp_path / "new" / "rows").rename(prepared)
    assert checked_job(ExportRequest(tmp_path / "new" / "run")).data_dir == str(prepared)
    (prepared / "manifest.json").unlink()
    with pytest.raises(RunDirError, match=r"the rows that the run was trained on are gone.*\n.*raymb data prepare"):
        checked_job(ExportRequest(tmp_path / "new" / "run"))


def test_the_newest_checkpoint_that_is_whole(tmp_path: Path) -> None:
    run = _run(tmp_path, 5, 10)
    (Path(iteration_dir(run / "checkpoints", 10)) / "manifest.json").unlink()
    assert checked_job(ExportRequest(run)).load_dir == iteration_dir(run / "checkpoints", 5)


@pytest.mark.parametrize(
    ("steps", "asked", "part"),
    [
        ([], {}, r"has no checkpoint that is whole\n  steps there: none"),
        ([5], {"which": "7"}, r"--checkpoint 7: .* has none of that step\n  steps there: 5"),
        ([5], {"which": "newest"}, "--checkpoint newest: best, latest or a step is expected"),
        ([5], {"merge": True}, r"--merge: .* trained the whole model and has no adapters"),
    ],
)
def test_what_is_refused(steps: list[int], asked: dict[str, Any], part: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=part):
        checked_job(ExportRequest(_run(tmp_path, *steps), **asked))


def test_no_run_and_one_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"is no run directory of raymb: there is no job.json"):
        checked_job(ExportRequest(tmp_path))
    (tmp_path / "job.json").write_text("[]")
    with pytest.raises(RunDirError, match=r"its job.json cannot be read"):
        checked_job(ExportRequest(tmp_path))
    run = _run(tmp_path, 5)
    former = json.loads((run / "job.json").read_text())
    del former["adapter_dir"]
    (run / "job.json").write_text(json.dumps(former))
    with pytest.raises(RunDirError, match="was written by another version of raymb"):
        checked_job(ExportRequest(run))


@pytest.mark.parametrize("content", [b"", b"Weights"], ids=["truncated", "changed"])
def test_a_broken_checkpoint_that_was_asked_for(content: bytes, tmp_path: Path) -> None:
    run = _run(tmp_path, 5, 10)
    (Path(iteration_dir(run / "checkpoints", 10)) / "__0_0.distcp").write_bytes(content)
    with pytest.raises(RunDirError, match=r"iter_0000010 is not whole: __0_0.distcp has .*\n.*steps there: 10, 5"):
        checked_job(ExportRequest(run, which="10"))


def test_another_base_model(tmp_path: Path) -> None:
    run = _run(tmp_path, 5, peft="lora")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(RunDirError, match=r"is not the model that the run started from:\n  - model: config.json was"):
        checked_job(ExportRequest(run))


def test_a_directory_in_the_way_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _run(tmp_path, 5)
    (run / "hf").mkdir()
    (run / "hf" / "mine").write_text("")
    assert main(["export", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{run / 'hf'} exists" in error and "--overwrite" in error and "--to" in error
    assert (run / "hf" / "mine").exists()
    assert checked_job(ExportRequest(run, overwrite=True)).hf_dir == str(run / "hf")
    assert main(["export", str(run), "--export_dtype", "int8"]) == 2
    assert "--export_dtype int8: source, bf16, fp16, fp32 is expected" in capsys.readouterr().err


def test_code_of_the_model_runs_only_for_the_flag(tmp_path: Path) -> None:
    run = _run(tmp_path, 5)
    content = json.loads((run / "job.json").read_text())
    content["spec"]["model"]["trust_remote_code"] = True  # as somebody else's run directory may say
    (run / "job.json").write_text(json.dumps(content))
    assert not checked_job(ExportRequest(run)).spec.model.trust_remote_code
    config = QWEN2_4_LAYERS | {"model_type": "new_family", "auto_map": {"AutoModel": "m.M"}}
    (Path(content["model_path"]) / "config.json").write_text(json.dumps(config))
    (run / "checkpoints" / "fingerprint.json").write_text("{}")
    with pytest.raises(ModelError, match="needs Python code from the model's repository") as refused:
        checked_job(ExportRequest(run))
    assert refused.value.hint == "read that code, then add --trust_remote_code to run it"
    assert checked_job(ExportRequest(run, trust_remote_code=True)).spec.model.trust_remote_code

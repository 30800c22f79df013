"""How a run ended, or had ended before, as its directory tells."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError
from ray.exceptions import OutOfMemoryError as RaysOutOfMemoryError
from ray.train import WorkerGroupError
from rich.console import Console

from raymb.checkpoints.manifest import describe_files, iteration_dir, write_manifest
from raymb.driver.outcome import brought, conclude, failed, has_finished, reason_of, say_how_to_resume, where_to_look
from raymb.errors import BadLoss, DataError, OutOfGpuMemory, RunFailed
from raymb.run.directory import RunDir
from raymb.spec import RunSpec, load_spec

ITERS = 40
FALLS, STALLS = [[10, 2.0], [20, 1.5], [30, 1.25]], [[10, 2.0], [20, 1.5], [30, 1.75]]


def _spec(tmp_path: Path, **flags: Any) -> RunSpec:
    given = {"hf_model_path": "some/model", "storage_path": tmp_path, "experiment_name": "run", **flags}
    return load_spec({name: str(value) for name, value in given.items()})


def _place(spec: RunSpec) -> RunDir:
    return RunDir.of(spec, "")


def _saved(place: RunDir, step: int, whole: bool = True, **state: Any) -> None:
    directory = Path(iteration_dir(place.checkpoints, step))
    directory.mkdir(parents=True)
    (directory / "common.pt").write_bytes(b"state")
    if whole:
        write_manifest(directory, describe_files(directory.iterdir()), {"step": step, **state})


def _finished(spec: RunSpec) -> bool:
    checked: Any = SimpleNamespace(spec=spec, plan=SimpleNamespace(train_iters=ITERS))
    return has_finished(checked, _place(spec))


def _printed(call: Any, spec: RunSpec, *arguments: Any) -> tuple[Any, str]:
    console = Console(file=io.StringIO(), width=300)
    job: Any = SimpleNamespace(spec=spec, train_iters=ITERS)
    result = call(*arguments, job, _place(spec), console)
    return result, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_has_finished_with_its_last_step_and_its_export(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    assert not _finished(spec)
    _saved(_place(spec), 30)
    _saved(_place(spec), ITERS, whole=False)
    _place(spec).hf.mkdir()
    assert not _finished(spec)
    write_manifest(iteration_dir(_place(spec).checkpoints, ITERS), {}, {"step": ITERS})
    assert _finished(spec)
    _place(spec).hf.rmdir()  # it died before the export: it starts again, to write it
    assert not _finished(spec)
    assert _finished(_spec(tmp_path, export_hf="false"))


@pytest.mark.parametrize("flags", [{"overwrite": "true"}, {"resume": "never"}])
def test_a_run_that_is_to_begin_anew_has_not_finished(tmp_path: Path, flags: dict[str, str]) -> None:
    spec = _spec(tmp_path, export_hf="false", **flags)
    _saved(_place(spec), ITERS)
    assert not _finished(spec)


@pytest.mark.parametrize(("losses", "patience", "finished"), [(FALLS, 1, False), (STALLS, 1, True), (STALLS, 2, False)])
def test_early_stopping_is_an_end_until_more_patience_is_given(
    tmp_path: Path, losses: list[list[float]], patience: int, finished: bool
) -> None:
    spec = _spec(tmp_path, export_hf="false", eval_interval=10, early_stopping_patience=patience)
    _saved(_place(spec), 30, validation_losses=losses)
    assert _finished(spec) is finished


def test_the_reason_is_the_workers_that_failed_first() -> None:
    reset = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1")
    error = WorkerGroupError("long text", {0: reset, 1: ValueError("rows\n  are\nmissing"), 2: ActorDiedError()})
    assert reason_of(error) == "worker 1 failed: ValueError: missing"
    assert reason_of(WorkerGroupError("", {0: BadLoss(7, "the gradient norm is nan")})) == (
        "worker 0 failed: BadLoss: step 7: the gradient norm is nan"
    )
    assert reason_of(DataError("no rows", "give --dataset")) == "no rows"
    assert reason_of(KeyboardInterrupt()) == "KeyboardInterrupt"


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("error", "flags", "saved", "asked_to_end", "kind"),
    [
        (OUT_OF_MEMORY, {}, False, False, OutOfGpuMemory),
        (ValueError("rows"), {}, False, False, RunFailed),
        (RaysOutOfMemoryError("of a host"), {}, False, False, RunFailed),
        (OUT_OF_MEMORY, {}, True, False, RunFailed),
        (OUT_OF_MEMORY, {"resume": "some/checkpoints"}, False, False, RunFailed),
        (OUT_OF_MEMORY, {}, False, True, RunFailed),
    ],
    ids=["first start", "another error", "host memory", "after a checkpoint", "--resume PATH", "Ctrl-C"],
)
def test_another_layout_may_be_tried_before_the_first_checkpoint(
    error: Exception, flags: dict[str, str], saved: bool, asked_to_end: bool, kind: type, tmp_path: Path
) -> None:
    spec = _spec(tmp_path, **flags)
    if saved:
        _saved(_place(spec), 5)
    job: Any = SimpleNamespace(spec=spec)
    raised = failed(WorkerGroupError("failed", {1: error}), job, _place(spec), asked_to_end)
    assert type(raised) is kind
    assert raised.message == f"worker 1 failed: {type(error).__name__}: {error}"


def test_where_to_look_names_the_last_page(tmp_path: Path) -> None:
    place = _place(_spec(tmp_path))
    assert where_to_look(place) == f"the workers' logs: {place.logs}"
    place.failures.mkdir(parents=True)
    for number in (9, 10):
        (place.failures / f"{number}.md").write_text("")
    assert where_to_look(place) == f"what happened: {place.failures / '10.md'}; the workers' logs: {place.logs}"


def test_how_to_resume(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    code, text = _printed(say_how_to_resume, spec, "interrupted", 130)
    assert (code, text) == (130, "interrupted before the first checkpoint; start again with the same command\n")
    _saved(_place(spec), 20)
    _saved(_place(spec), 30, whole=False)
    code, text = _printed(say_how_to_resume, spec, "out of time", 75)
    assert (code, text.splitlines()[0]) == (75, "out of time; the same command resumes from step 20")
    assert iteration_dir(_place(spec).checkpoints, 20) in text
    for flags in ({"overwrite": "true"}, {"resume": "never"}):
        _, text = _printed(say_how_to_resume, _spec(tmp_path, **flags), "interrupted", 130)
        assert "the same command with --resume auto and no --overwrite resumes from step 20" in text


def test_the_end_of_a_run_says_where_everything_lies(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    _saved(_place(spec), 30, metric=1.0)
    _saved(_place(spec), ITERS, metric=2.0)
    _, text = _printed(conclude, spec)
    assert f"  checkpoint         {iteration_dir(_place(spec).checkpoints, ITERS)}\n" in text
    assert f"  best checkpoint    {iteration_dir(_place(spec).checkpoints, 30)}\n" in text
    assert "stopped" not in text and "  failures " not in text and "Hugging Face" not in text
    _place(spec).failures.mkdir()
    _place(spec).hf.mkdir()
    _, text = _printed(conclude, spec)
    assert f"  failures           {_place(spec).failures}\n" in text and "Hugging Face model " in text


def test_the_best_checkpoint_is_not_named_twice(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    _saved(_place(spec), ITERS, metric=2.0)
    assert "best checkpoint" not in _printed(conclude, spec)[1]


def test_a_run_that_stopped_early_says_so(tmp_path: Path) -> None:
    spec = _spec(tmp_path, eval_interval=10, early_stopping_patience=1)
    _saved(_place(spec), 30, validation_losses=STALLS)
    first = _printed(conclude, spec)[1].splitlines()[0]
    assert first == "stopped early at step 30: the best validation loss is 1.5000, at step 20"


def test_a_run_that_stopped_before_its_end_says_so(tmp_path: Path) -> None:
    spec = _spec(tmp_path)
    _saved(_place(spec), 30)
    first = _printed(conclude, spec)[1].splitlines()[0]
    assert first == "stopped at step 30 of 40; the same command resumes from there"


@pytest.mark.parametrize(
    ("losses", "line"),
    [
        ([[0, 2.5], [20, 2.25], [40, 1.5]], "2.5000 before training, 1.5000 at step 40 (40% lower)"),
        ([[0, 2.0], [40, 2.5]], "2.0000 before training, 2.5000 at step 40 (25% higher)"),
        (FALLS, ""),
        ([[0, 2.5]], ""),
        ([], ""),
    ],
)
def test_the_end_says_what_training_brought_where_it_was_validated_before(losses: list[list[float]], line: str) -> None:
    assert brought(losses) == line

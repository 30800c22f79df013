"""What becomes of a checkpoint that has been written, or has not: one rank, and a run at a URI or in a directory."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests.conftest import QWEN2_4_LAYERS, resolved_job

from raymb.bridge import saving as module
from raymb.bridge.saving import Saving
from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.manifest import MANIFEST, describe_files, steps_of, write_manifest
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.errors import RunFailed, StorageError
from raymb.model.shape import ModelShape
from raymb.rank.progress import Progress
from raymb.spec import load_spec
from raymb.storage.remote import Remote


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Run:
    def __init__(self, home: Path, storage: str, **flags: Any):
        given = {"hf_model_path": "some/model", "storage_path": storage, "train_iters": 40, "save_interval": 10}
        spec = load_spec({name: str(value) for name, value in {**given, "experiment_name": "run", **flags}.items()})
        job = resolved_job(spec, ModelShape.from_config(QWEN2_4_LAYERS), home, "cpu")
        self.job = replace(job, spec=spec)
        self.said: list[Any] = []
        self.home = Path(job.checkpoint_dir)
        self.saving = Saving(self.job, Progress(), self.said.append, lambda directory, step: None, [])

    def writes(self, step: int) -> dict[str, Any]:
        """As a rank does."""
        self.saving.clear(step)
        part = self.saving.directory(step) / "__0_0.distcp"
        part.write_text(f"weights of {step}")
        if self.saving.remote is not None:
            self.saving.remote.upload([part])
        return describe_files([part])

    def saves(self, step: int) -> None:
        self.saving.made_whole(step, None, self.writes(step))

    def warnings(self) -> list[str]:
        return [record["text"] for record in self.said if record["kind"] == "warning"]


@pytest.fixture
def at_uri(one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    monkeypatch.setattr(module, "largest_of_all", lambda value: value)  # it is on a GPU
    uri = f"memory://{uuid.uuid4().hex}"
    return lambda **flags: Run(tmp_path, uri, **flags)


def _there(run: Run) -> list[str]:
    assert run.saving.remote is not None
    return [name for name in run.saving.remote.remote.listing("checkpoints") if name.startswith("iter")]


def test_what_is_given_up_leaves_nothing_at_the_uri(at_uri: Callable[..., Run]) -> None:
    """Other ranks had uploaded their parts."""
    run = at_uri()
    run.saves(10)
    run.writes(20)
    run.saving.given_up(20, "OSError: No space left on device (rank 3)")
    run.saving.close()
    assert _there(run) == ["iter_0000010"] and steps_of(run.home) == [10]
    assert run.warnings() == ["no checkpoint at step 20: OSError: No space left on device (rank 3)"]
    run.saving.check_published()


def test_the_last_one_is_the_one_that_early_stopping_ended_with(at_uri: Callable[..., Run]) -> None:
    run = at_uri()
    run.saving.given_up(20, "disk full")
    run.saving.last_step = 30
    with pytest.raises(RunFailed, match="the last checkpoint, at step 30, could not be written: disk full"):
        run.saving.given_up(30, "disk full")
    run.saving.close()


def test_a_last_one_that_is_not_at_the_uri_fails_the_run(
    at_uri: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was printed into a log, and the run ended with 0."""
    run, upload = at_uri(keep_last=1), Remote.upload

    def fail(self: Remote, local: Path, name: str) -> None:
        if name.endswith(MANIFEST):
            raise StorageError("memory: cannot be written (busy)")
        upload(self, local, name)

    run.saves(10)
    run.saving.later.submit(lambda: None).result()
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", fail)
        run.saves(20)
        run.saving.later.submit(lambda: None).result()
        said = "the checkpoint of step 20 could not be published: memory: cannot be written (busy)"
        assert run.warnings() == [said]
        with pytest.raises(StorageError, match="the last checkpoint, at step 20, could not be published"):
            run.saving.check_published()
        assert RemoteCheckpoints.latest_step(run.saving.remote, run.home) == 10  # type: ignore[arg-type]
    run.saves(30)
    run.saving.close()
    run.saving.check_published()  # the storage was away for a while only
    assert _there(run) == ["iter_0000030"] and steps_of(run.home) == [30]


def test_old_ones_that_cannot_be_deleted_cost_the_new_one_nothing(
    at_uri: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any) -> None:
        raise StorageError("memory: cannot be deleted")

    run = at_uri(keep_last=1)
    run.saves(10)
    monkeypatch.setattr(RemoteCheckpoints, "delete_old", fail)
    run.saves(20)
    run.saving.close()
    run.saving.check_published()
    assert "memory: cannot be deleted" in run.warnings()[-1] and _there(run) == ["iter_0000010", "iter_0000020"]


def test_what_an_earlier_start_left_of_a_step_is_gone_before_it_is_written_again(at_uri: Callable[..., Run]) -> None:
    run = at_uri()
    assert run.saving.remote is not None
    remote = run.saving.remote.remote
    remote.write_text("checkpoints/iter_0000010/__7_0.distcp", "of a larger run")
    run = at_uri()
    (run.saving.directory(10)).mkdir(parents=True)
    (run.saving.directory(10) / "__0_1.distcp").write_text("stale")
    run.saves(10)
    run.saving.close()
    expected = ["__0_0.distcp", MANIFEST]
    assert remote.listing("checkpoints/iter_0000010") == expected
    assert sorted(path.name for path in run.saving.directory(10).iterdir()) == expected


def test_the_one_just_saved_stays_on_a_file_system_too(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "largest_of_all", lambda value: value)
    run = Run(tmp_path, str(tmp_path), keep_last=1)
    run.saves(30)
    run.saving.later.submit(lambda: None).result()
    run.saves(20)
    run.saving.close()
    assert 20 in steps_of(run.home)


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ({}, [5, 20, 40, 50, 60]),
        ({"keep_best": 2}, [5, 20, 30, 40, 50, 60]),
        ({"keep_last": 1}, [60]),
        ({"keep_last": 2, "keep_best": 1}, [20, 50, 60]),
        ({"keep_last": 0}, [5, 10, 20, 30, 40, 50, 60]),
    ],
)
def test_what_stays(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, int], kept: list[int]
) -> None:
    """By default three and the best one, and one that was there before that was the default."""
    monkeypatch.setattr(module, "largest_of_all", lambda value: value)
    run = Run(tmp_path, str(tmp_path), **flags)
    run.writes(5)
    write_manifest(run.saving.directory(5), describe_files([run.saving.directory(5) / "__0_0.distcp"]), {"step": 5})
    for step, loss in {10: 3.0, 20: 1.0, 30: 1.5, 40: 2.0, 50: 2.5, 60: 2.75}.items():
        run.saving.made_whole(step, loss, run.writes(step))
        run.saving.later.submit(lambda: None).result()
        assert (run.home / (run.home / "best").read_text().strip()).is_dir()
    run.saving.close()
    assert sorted(steps_of(run.home)) == kept
    assert (run.home / "best").read_text() == f"iter_{20 if 20 in kept else 60:07d}\n"
    assert run.warnings() == []


def test_a_publication_looks_at_no_checkpoint_twice(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "largest_of_all", lambda value: value)
    run, looked = Run(tmp_path, str(tmp_path), keep_last=0), list[str]()
    look = checkpoint.why_not_whole
    monkeypatch.setattr(
        checkpoint, "why_not_whole", lambda directory: (looked.append(Path(directory).name), look(directory))[1]
    )
    for step in (10, 20, 30):
        run.saving.made_whole(step, 1.0 / step, run.writes(step))
        run.saving.later.submit(lambda: None).result()
    assert looked == ["iter_0000010", "iter_0000020", "iter_0000030"]
    run.saving.validated(30, 5.0)
    run.saving.close()
    assert looked[3:] == ["iter_0000030"], "its manifest has the loss of a late validation"
    assert (run.home / "best").read_text() == "iter_0000020\n"


def test_a_later_one_of_an_earlier_start_counts_until_it_is_written_again(
    one_rank: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "largest_of_all", lambda value: value)
    run = Run(tmp_path, str(tmp_path))
    write_manifest(run.saving.directory(30), run.writes(30), {"step": 30, "metric": 0.5})
    for step, best in ((10, 30), (20, 20)):
        run.saving.made_whole(step, 10.0 / step, run.writes(step))
        run.saving.later.submit(lambda: None).result()
        assert (run.home / "best").read_text() == f"iter_{best:07d}\n"
        run.writes(30)
    run.saving.close()

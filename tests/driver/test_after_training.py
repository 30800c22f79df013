"""What is done for the exports when the workers are released: where, with what, and what of it the driver hears. A Ray
of its own, and tasks that really run on it; the export itself is tests/smoke/test_exports.py's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table
from tests.conftest import resolved_job

from raymb.driver import after_training
from raymb.driver.after_training import finish_exports
from raymb.driver.host_memory import (
    memory_of_a_resharding_worker,
    memory_of_an_exporting_worker,
    memory_of_finishing,
)
from raymb.errors import RunFailed
from raymb.model.shape import ModelShape, read_model_shape
from raymb.run.job import Job
from raymb.run.unverified import LeftToExport
from raymb.spec import load_spec

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def job_for(shape_only_model_dir: Path, tmp_path: Path) -> Callable[..., Job]:
    shape: ModelShape = read_model_shape(str(shape_only_model_dir))

    def make(**flags: str) -> Job:
        given = {"hf_model_path": "m", "num_workers": "2", "backend": "cpu", "wait_for_resources": "2", **flags}
        return resolved_job(load_spec(given), shape, tmp_path, "cpu")

    return make


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=4, _memory=8 << 30, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield
    ray.shutdown()


def left_of(job: Job) -> dict[str, Any]:
    return {"job": job.to_json(), "left": LeftToExport(3, None), "node": ray.get_runtime_context().get_node_id()}


def finish(job: Job, does: Callable[..., None], monkeypatch: pytest.MonkeyPatch, **left: Any) -> list[str]:
    """What is said where the task does this."""
    said: list[str] = []
    monkeypatch.setattr(after_training, "_finish", does)
    finish_exports({**left_of(job), **left}, job, None, said.append)
    return said


def _groups() -> list[str]:
    return [group["state"] for group in placement_group_table().values()]


def test_it_asks_for_cpus_and_memory_and_gives_them_back(
    cluster: None, job_for: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = job_for()
    place = str(tmp_path / "seen")

    def does(environment: Any, given: str, left: Any, threads: int, hub: Any) -> None:
        import os
        import pathlib

        has = ray.get_runtime_context().get_assigned_resources()
        pathlib.Path(place).write_text(repr((has["CPU"], int(has["memory"]), left.step, os.environ["OMP_NUM_THREADS"])))

    assert finish(job, does, monkeypatch) == []
    assert eval(Path(place).read_text()) == (2.0, memory_of_finishing(job), 3, "2")
    assert set(_groups()) == {"REMOVED"}


def test_what_fails_there_is_said_as_it_is(
    cluster: None, job_for: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        raise RunFailed("the export is not what it should be", "it is left in hf-failed")

    with pytest.raises(RunFailed) as caught:
        finish(job_for(), fails, monkeypatch)
    assert (caught.value.message, caught.value.hint) == (
        "the export is not what it should be",
        "it is left in hf-failed",
    )

    def dies(*given: Any) -> None:
        import os

        os._exit(1)

    with pytest.raises(RunFailed, match="the export is not finished") as caught:
        finish(job_for(), dies, monkeypatch)
    assert "raymb export RUN" in caught.value.hint
    assert set(_groups()) == {"REMOVED"}


def test_a_busy_machine_is_waited_for_and_given_up_in_time(
    cluster: None, job_for: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ray.remote(num_cpus=3)(type("Other", (), {"there": lambda self: True})).remote()  # type: ignore[call-overload]
    ray.get(other.there.remote())
    said: list[str] = []
    with pytest.raises(RunFailed, match="the export is not finished: the cluster has too little") as caught:
        finish_exports(left_of(job_for()), job_for(), None, said.append)
    assert "2 CPUs asked (2 for each worker), 4 there, 1 of them free" in caught.value.message
    assert said and said[0].startswith("waiting for resources, ")
    ray.kill(other)


def test_a_machine_that_has_gone_has_taken_the_files_along(
    cluster: None, job_for: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFailed, match="has gone"):
        finish(job_for(), lambda *given: None, monkeypatch, node="f" * 56)


def test_memory_follows_the_model(job_for: Callable[..., Job], tmp_path: Path) -> None:
    job = job_for(tensor_parallel_size="2")
    weights, base = 4 * job.plan.parameters, 1 << 30
    assert memory_of_finishing(job) == int(1.2 * weights) + base
    assert memory_of_an_exporting_worker(job) == int(1.2 * weights) + base  # a half of it, twice
    assert memory_of_a_resharding_worker(job, tmp_path) == int(1.2 * weights / 2) + base
    half = job_for(tensor_parallel_size="2", precision="bf16")
    assert memory_of_finishing(half) == int(1.2 * weights / 2) + base

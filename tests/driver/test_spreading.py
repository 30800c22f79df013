"""What stays on this machine although a cluster is joined: few rows, rows for which no cluster answers or has room, and
the rest where its tasks fail. With a stand-in for Ray; tests/smoke/test_spread_rows.py has two real nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from raymb.data.settings import Settings
from raymb.data.shapes import Shape
from raymb.data.sources import Batch
from raymb.driver.spreading import SpreadEncoders
from raymb.errors import ClusterError, DataError
from raymb.spec import load_spec


class RayError(Exception):
    pass


class Rows:
    name = "rows.jsonl"
    size = 1

    def __init__(self, count: int):
        self.count = count

    def batches(self) -> Iterator[Batch]:
        return (Batch("rows.jsonl line", range(number, number + 1), [], 1) for number in range(1, self.count + 1))


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Tasks that answer at once, from nodes a and b in turn, until `fails_at`."""
    state = SimpleNamespace(cpus=8, fails_at=None, error=RayError("a node is gone"), cancelled=0, joined=True)
    state.models = set()

    def get(number: int) -> tuple[str, Any]:
        if number == state.fails_at:
            raise state.error
        return "ab"[number % 2], number

    def remote(settings: Settings, model: Any, batch: Batch, variables: Any) -> int:
        state.models.add(model)
        return batch.numbers[0]

    task = SimpleNamespace(remote=remote)
    module = ModuleType("ray")
    module.remote = lambda function: SimpleNamespace(options=lambda **options: task)  # type: ignore[attr-defined]
    module.put = lambda values: values  # type: ignore[attr-defined]
    module.get = get  # type: ignore[attr-defined]
    module.available_resources = lambda: {"CPU": float(state.cpus)}  # type: ignore[attr-defined]
    module.cancel = lambda number, force: setattr(state, "cancelled", state.cancelled + 1)  # type: ignore[attr-defined]
    exceptions = ModuleType("ray.exceptions")
    exceptions.RayError = RayError  # type: ignore[attr-defined]

    @contextmanager
    def connect(spec: Any, console: Console) -> Iterator[None]:
        if not state.joined:
            raise ClusterError("no Ray cluster answers at host:1: Connection refused")
        yield

    cluster = ModuleType("raymb.driver.cluster")
    cluster.connect = connect  # type: ignore[attr-defined]
    for name, found in (("ray", module), ("ray.exceptions", exceptions), ("raymb.driver.cluster", cluster)):
        monkeypatch.setitem(sys.modules, name, found)
    return state


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> SpreadEncoders:
    monkeypatch.setattr(SpreadEncoders, "here", lambda self, batches: (f"here {batch.numbers[0]}" for batch in batches))
    settings = Settings("model", False, None, Shape(), "assistant", 9, "drop")
    made = SpreadEncoders(load_spec({"hf_model_path": "m"}), settings, Console(width=300))
    made.workers = 2
    return made


def here(first: int, last: int) -> list[str]:
    return [f"here {number}" for number in range(first, last + 1)]


def test_many_rows_are_spread_and_stay_in_order(ray: Any, encoders: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(encoders.encoded(Rows(50))) == list(range(1, 51))
    assert capsys.readouterr().out == "rows.jsonl: tokenized by 2 nodes of the Ray cluster\n"


def test_every_node_has_the_tokenizer_of_a_hub_model_itself(ray: Any, encoders: Any) -> None:
    list(encoders.encoded(Rows(50)))
    spec = load_spec({"hf_model_path": "owner/name", "hf_revision": "c0ffee"})
    of_hub = SpreadEncoders(spec, encoders.settings, None)
    of_hub.workers = 2
    list(of_hub.encoded(Rows(50)))
    assert ray.models == {None, ("owner/name", "c0ffee")}


def test_few_rows_and_images_stay_here(ray: Any, encoders: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ray.joined = False  # nobody asks
    assert list(encoders.encoded(Rows(15))) == here(1, 15)
    encoders.settings = Settings("m", False, None, Shape(), "assistant", 9, "drop", architecture="Sees")
    assert list(encoders.encoded(Rows(50))) == here(1, 50)
    assert capsys.readouterr().out == ""


def test_a_busy_cluster_is_left_alone(ray: Any, encoders: Any) -> None:
    ray.cpus = 2
    assert list(encoders.encoded(Rows(50))) == here(1, 50)


def test_a_cluster_that_does_not_answer(ray: Any, encoders: Any, capsys: pytest.CaptureFixture[str]) -> None:
    ray.joined = False
    assert list(encoders.encoded(Rows(50))) == list(encoders.encoded(Rows(50))) == here(1, 50)
    assert capsys.readouterr().out == (
        "rows are tokenized on this machine alone: no Ray cluster answers at host:1: Connection refused\n"
    )


def test_a_task_that_fails(ray: Any, encoders: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that were on their way are done again here, none is lost and none is twice."""
    ray.fails_at = 30
    assert list(encoders.encoded(Rows(50))) == [*range(1, 30), *here(30, 50)]
    assert ray.cancelled == 16
    assert capsys.readouterr().out == (
        "rows.jsonl: a task on the Ray cluster failed (RayError: a node is gone); this machine goes on alone\n"
    )


def test_what_is_wrong_with_the_rows_is_said(ray: Any, encoders: Any) -> None:
    ray.fails_at, ray.error = 3, RayError("task failed")
    ray.error.cause = DataError("--dataset: the rows are messages")
    with pytest.raises(DataError, match="the rows are messages"):
        list(encoders.encoded(Rows(50)))

"""Where Ray has placed the workers: a run does not begin with a group on two nodes, one that has begun resumes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raymb.driver import placement
from raymb.driver.placement import PlacementCallback
from raymb.errors import ClusterError


class Told:
    """The hub, as far as the callback knows it."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.push = SimpleNamespace(remote=self.records.extend)


def placed(nodes: str) -> Any:
    """Ray Train's worker group, by the node of each rank."""
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_ip="10.0.0.1", node_id=node * 16)) for node in nodes]
    return SimpleNamespace(get_workers=lambda: workers)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(placement.ray, "get", lambda answer, timeout: answer)
    return Told()


def test_a_run_does_not_begin_with_a_group_on_two_nodes(told: Told) -> None:
    with pytest.raises(ClusterError, match="1 of 2 tensor parallel groups of 2 lie on more than one node") as caught:
        PlacementCallback(2, told).after_worker_group_start(placed("aaab"))
    assert "3 on 10.0.0.1 (node aaaaaaaa), 1 on 10.0.0.1 (node bbbbbbbb)" in caught.value.message
    assert "--tensor_parallel_size" in caught.value.hint and told.records == []


def test_a_run_that_has_begun_resumes_with_a_warning(told: Told) -> None:
    callback = PlacementCallback(2, told)
    callback.after_worker_group_start(placed("aabb"))
    callback.after_worker_group_start(placed("aaab"))
    assert [record["kind"] for record in told.records] == ["phase", "warning"]
    assert told.records[0]["text"] == (
        "placed: ranks 0 to 1 on 10.0.0.1 (node aaaaaaaa), 2 to 3 on 10.0.0.1 (node bbbbbbbb)"
    )


def test_one_node_is_worth_no_line(told: Told) -> None:
    PlacementCallback(2, told).after_worker_group_start(placed("aaaa"))
    assert told.records == []

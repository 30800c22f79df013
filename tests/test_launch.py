"""What the driver asks a cluster for before the workers start."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from raymb import launch
from raymb.driver import cluster
from raymb.driver.cluster import Cluster
from raymb.spec import load_spec


def test_an_elastic_run_waits_for_its_smallest_size_with_shares_of_its_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else workers that are started first would leave no CPU to those that are to come."""
    waited: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(launch, "wait_for", lambda *given: waited.append(given))
    spec = load_spec({"hf_model_path": "m", "num_workers": "2:8", "wait_for_resources": 5})
    resources = launch._reserved(Cluster(joined=True), "cpu", [2, 4, 8], spec, Console())
    assert resources.cpus == 0.5
    assert [given[:3] for given in waited] == [(resources, 2, 5.0)]

"""--placement: where Ray keeps places for the workers of a run, on two nodes that both have room for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from raymb.driver.cluster import Resources
from raymb.driver.resources import Request
from raymb.driver.trainer import request_of
from raymb.model.shape import ModelShape, read_model_shape
from raymb.spec import load_spec
from tests.conftest import resolved_job
from tests.smoke.ray_nodes import RayNodes

_RESERVE = """
import json, sys, time
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.util.placement_group import placement_group_table
from raymb.driver.resources import Request, Reservation

maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # the nodes do, too
ray.init(sys.argv[1], log_to_driver=False)
found = []
for fields in json.loads(sys.argv[2]):
    while ray.available_resources().get("CPU", 0) < 4:  # both nodes are there, and free again
        time.sleep(0.1)
    places = Reservation(Request(**fields), 2, 1)
    assert places.is_there(60)
    found.append(len(set(placement_group_table(places.group)["bundles_to_node_id"].values())))
    places.withdraw()
print(json.dumps(found))
"""


@pytest.fixture
def shape(shape_only_model_dir: Path) -> ModelShape:
    return read_model_shape(str(shape_only_model_dir))


def request_for(shape: ModelShape, home: Path, **flags: str) -> Request:
    spec = load_spec({"hf_model_path": "m", "num_workers": "2", "backend": "cpu", **flags})
    return request_of(resolved_job(spec, shape, home, "cpu"), Resources(cpus=1, gpus=0, threads=1))


def test_the_workers_are_packed_unless_they_are_to_be_spread(shape: ModelShape, tmp_path: Path) -> None:
    asked = [request_for(shape, tmp_path, **flags).placement for flags in ({}, {"placement": "spread"})]
    assert asked == ["pack", "spread"]


@pytest.mark.smoke
@pytest.mark.slow
def test_where_ray_puts_them(shape: ModelShape, tmp_path: Path) -> None:
    requests = [asdict(request_for(shape, tmp_path, placement=name)) for name in ("pack", "spread")]
    cluster = RayNodes(2)
    try:
        cluster.add(2)
        words = [sys.executable, "-c", _RESERVE, cluster.address, json.dumps(requests)]
        environment = {**os.environ, "PYTHONPATH": "src"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    finally:
        cluster.close()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 2]

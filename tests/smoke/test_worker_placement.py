"""--placement: where Ray puts the workers of a run, on two nodes that both have room for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raymb.driver.cluster import Resources
from raymb.driver.trainer import _scaling
from raymb.model.shape import ModelShape, read_model_shape
from raymb.spec import load_spec
from tests.conftest import resolved_job
from tests.smoke.ray_nodes import RayNodes

_TRAIN = """
import json, sys
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

def where(config):
    import pathlib, ray
    place = pathlib.Path(config["place"], str(ray.train.get_context().get_world_rank()))
    place.write_text(ray.get_runtime_context().get_node_id())

address, place, scaling = sys.argv[1:]
ray.init(address, log_to_driver=False)
TorchTrainer(
    where,
    train_loop_config={"place": place},
    torch_config=TorchConfig("gloo"),
    scaling_config=ScalingConfig(**json.loads(scaling)),
    run_config=RunConfig(name="run", storage_path=place),
).fit()
"""


@pytest.fixture
def shape(shape_only_model_dir: Path) -> ModelShape:
    return read_model_shape(str(shape_only_model_dir))


def scaling(shape: ModelShape, home: Path, **flags: str):
    spec = load_spec({"hf_model_path": "m", "num_workers": "2", "backend": "cpu", **flags})
    return _scaling(resolved_job(spec, shape, home, "cpu"), Resources(cpus=1, gpus=0, threads=1))


def test_the_workers_are_packed_unless_they_are_to_be_spread(shape: ModelShape, tmp_path: Path) -> None:
    asked = [scaling(shape, tmp_path, **flags).placement_strategy for flags in ({}, {"placement": "spread"})]
    assert asked == ["PACK", "SPREAD"]


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_where_ray_puts_them(shape: ModelShape, tmp_path: Path) -> None:
    cluster = RayNodes(2)
    cluster.add(2)
    nodes = {}
    try:
        for name in ("pack", "spread"):
            place = tmp_path / name
            place.mkdir()
            config = scaling(shape, tmp_path, placement=name)
            fields = ("num_workers", "use_gpu", "resources_per_worker", "placement_strategy")
            words = [cluster.address, str(place), json.dumps({field: getattr(config, field) for field in fields})]
            environment = {**os.environ, "PYTHONPATH": "src"}
            subprocess.run([sys.executable, "-c", _TRAIN, *words], check=True, timeout=300, env=environment)
            nodes[name] = {(place / rank).read_text() for rank in ("0", "1")}
    finally:
        cluster.close()
    assert {name: len(found) for name, found in nodes.items()} == {"pack": 1, "spread": 2}

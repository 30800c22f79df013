"""A Ray cluster and a hub for tests of what ranks and driver say to each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from raymb.telemetry.hub import Hub


@pytest.fixture(scope="package")
def node() -> Iterator[str]:
    """Ray's id of this machine."""
    own = not ray.is_initialized()  # the smoke tests' cluster lasts until the end
    if own:
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=40)
    yield ray.get_runtime_context().get_node_id()
    if own:
        ray.shutdown()


@pytest.fixture(scope="package")
def shared_hub(node: str) -> Any:
    return Hub.remote()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture
def new_hub(shared_hub: Any) -> Any:
    """As a new one, which would be another process."""
    ray.get(shared_hub.__ray_call__.remote(lambda actor: actor.__init__()))
    return shared_hub

"""A cluster that wants an authentication token: doctor tells a wrong one from a cluster that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymb.doctor.ranks import free_port

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(200)]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 32}


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    words = ["start", "--head", "--block", "--port", address.rpartition(":")[2], "--num-cpus", "1"]
    words += ["--include-dashboard=false", "--disable-usage-stats", "--node-ip-address", "127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        env={**os.environ, **TOKEN},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield address
    process.terminate()
    process.wait(timeout=30)


def doctor(address: str, **environment: str) -> str:
    words = ["doctor", "--hf_model_path", "sample", "--ray_address", address]
    settings = {**os.environ, "PYTHONPATH": "src", "COLUMNS": "200", **environment}
    return subprocess.run(
        [sys.executable, "-m", "raymb", *words], capture_output=True, text=True, timeout=120, env=settings
    ).stdout


def test_a_token_that_the_cluster_refuses(head: str) -> None:
    deadline = time.monotonic() + 60
    while "1 node with 1 CPUs" not in (text := doctor(head, **TOKEN)):
        assert time.monotonic() < deadline, text
    assert "this client sends the one of RAY_AUTH_TOKEN" in text
    refused = doctor(head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="b" * 32)
    assert f"join: {head} refuses this client's authentication token" in refused, refused
    assert "ray get-auth-token" in refused

"""A Ray of the run's own has as many CPUs as the process may use, not as the machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(200)]
CODE = """
import ray
from rich.console import Console
from raymb.driver.cluster import connect
from raymb.spec import load_spec

with connect(load_spec({"hf_model_path": "sample", "ray_address": "local"}), Console(quiet=True)) as cluster:
    worker = cluster.resources_of_a_worker("cpu", "auto", 2)
    print(ray.cluster_resources()["CPU"], worker.cpus, worker.threads)
"""


def test_the_cpus_of_a_process_that_may_use_one() -> None:
    words = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", CODE]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "src"}, timeout=180)
    assert done.stdout == "1.0 0.5 1\n", done.stderr

"""Anyscale's and SkyPilot's own parsers read what is rendered for them. Their packages do not go with raymb's versions
(SkyPilot wants an older click, either brings a score of packages), so they are looked for in an environment of their
own: `uv venv clients; uv pip install --python clients/bin/python anyscale==0.26.112 skypilot==0.14.1;
RAYMB_CLIENTS=clients/bin/python scripts/test tests/submit/test_clients.py`."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.submit.conftest import STORED
from tests.submit.test_targets import HERE

CLIENTS = os.environ.get("RAYMB_CLIENTS", "")
pytestmark = pytest.mark.skipif(not CLIENTS, reason="RAYMB_CLIENTS names no Python with anyscale and skypilot")


def run(code: str, file: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [CLIENTS, "-c", code, str(file)], capture_output=True, text=True, timeout=300, env=environment, cwd=file.parent
    )


ANYSCALE = """
import sys
from anyscale.job.models import JobConfig
config = JobConfig.from_yaml(sys.argv[1])
print(config.name, config.compute_config.worker_nodes[0].max_nodes)
"""
SKYPILOT = """
import sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
print(task.name, task.num_nodes, resources.accelerators)
"""


def test_anyscale_reads_the_job(rendered: Callable[..., Path]) -> None:
    words = [*HERE, "--storage_path", "/mnt/user_storage/runs", "--image", "docker.io/team/raymb:1", "--queue", "night"]
    more = {"tags": "team=nlp", "market": "spot", "head_instance_type": "m5.2xlarge", "time_limit": 60, "cloud": "one"}
    file = rendered("anyscale", *words, instance_type="p5.48xlarge", **more) / "job.yaml"
    assert (done := run(ANYSCALE, file)).stdout == "job 2\n", done.stderr
    file.write_text(file.read_text() + "max_tries: 3\n")
    assert run(ANYSCALE, file).returncode != 0


def test_skypilot_reads_the_task(rendered: Callable[..., Path]) -> None:
    more = {
        "file_mounts": "/data:./rows",
        "setup": "nvidia-smi",
        "image": "team/raymb:1",
        "infra": "aws",
        "cpus_per_node": 8,
    }
    file = rendered("skypilot", *HERE, *STORED, "--spot", accelerator="H100", **more) / "task.yaml"
    assert (done := run(SKYPILOT, file)).stdout == "job 2 {'H100': 8}\n", done.stderr
    file.write_text(file.read_text() + "nodes: 3\n")
    assert run(SKYPILOT, file).returncode != 0

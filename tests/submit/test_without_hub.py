"""A hub that does not answer here is asked by the job; one that answers says what is wrong. In processes of their own,
because the hub's address is read when its client is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import Hub

SOURCE = str(Path(__file__).parents[2] / "src")
TARGETS = {
    "slurm": [],
    "kuberay": ["--image", "a", "--storage_path", "s3://bucket/runs"],
}


def submit(endpoint: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hub"), "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "raymb", "submit", *words, "--job_name", "job", "--dry_run"]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("target", TARGETS)
def test_a_model_of_the_hub(target: str, home: Path) -> None:
    words = [target, *TARGETS[target], "--hf_model_path", "some/other-model", "--dataset", "some/rows"]
    done = submit("http://127.0.0.1:1", home, *words)
    assert done.returncode == 0, done.stderr
    assert "not checked here, but by the job first: --hf_model_path some/other-model and the layout" in done.stderr
    assert (home / "raymb-jobs" / "job" / "spec.yaml").is_file()
    hub = Hub({}, {})
    try:
        done = submit(hub.endpoint, home, *words)
    finally:
        hub.close()
    assert done.returncode == 2 and "no such model on the hub" in done.stderr


def test_rows_of_the_hub(home: Path) -> None:
    words = ["slurm", "--hf_model_path", "model", "--dataset", "some/rows", "--backend", "cpu", "--num_workers", "2"]
    done = submit("http://127.0.0.1:1", home, *words)
    assert done.returncode == 0, done.stderr
    assert "checked: 2 workers" in done.stderr
    assert "not checked here, but by the job first: --dataset some/rows" in done.stderr
    hub = Hub({}, {})
    try:
        done = submit(hub.endpoint, home, *words)
    finally:
        hub.close()
    assert done.returncode == 2 and "--dataset some/rows: reading it from the hub failed" in done.stderr

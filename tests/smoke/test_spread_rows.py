"""Rows are tokenized by both nodes of a cluster that is joined, and are those of one machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_shape_only_model
from tests.smoke.ray_nodes import RayNodes

pytestmark = [pytest.mark.smoke, pytest.mark.timeout(600)]
ROWS = 40_000


@pytest.fixture
def two_nodes() -> Iterator[str]:
    nodes = RayNodes(2)
    nodes.add(2)
    yield nodes.address
    nodes.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_shape_only_model(tmp_path / "model")


def prepared(address: str, model: Path, storage: Path, *words: object) -> tuple[dict[str, Any], str]:
    """(the manifest, what was said)."""
    command = [sys.executable, "-m", "raymb", "data", "prepare", "--json", "--hf_model_path", model, "--packing"]
    command += ["--storage_path", storage, "--backend", "cpu", "--ray_address", address, *words]
    # The cores of this machine count as one, so that the cluster's four are more.
    one_core = ["taskset", "-c", "0"]
    done = subprocess.run(
        [*one_core, *map(str, command)],
        env={**os.environ, "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 2), done.stderr
    if done.returncode:
        return {}, done.stderr
    return json.loads(Path(json.loads(done.stdout)["path"], "manifest.json").read_text()), done.stderr


def test_both_nodes_tokenize(two_nodes: str, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"p{number}", "completion": f" c{number}"} for number in range(ROWS)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    here, said = prepared("local", model, tmp_path / "here", "--dataset", file)
    assert said == ""
    there, said = prepared(two_nodes, model, tmp_path / "there", "--dataset", file)
    assert said == f"{file}: tokenized by 2 nodes of the Ray cluster\n"
    assert (there["content"], there["parts"]) == (here["content"], here["parts"])
    assert sum(there["parts"][part]["rows"] for part in ("train", "validation")) == ROWS
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(line) + "\n" for line in lines[:100]))
    assert prepared(two_nodes, model, tmp_path / "there", "--dataset", few)[1] == ""
    with file.open("a") as stream:
        stream.write("{broken\n")
    _, said = prepared(two_nodes, model, tmp_path / "there", "--dataset", file)
    assert f"error: --dataset {file}: 1 row is wrong\n  {file} line {ROWS + 1}: not valid JSON" in said

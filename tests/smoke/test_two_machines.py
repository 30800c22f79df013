"""Two machines that share nothing but a bucket: two Ray nodes on this machine, one with a file system of its own in the
place of the other's workspace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymb.storage.remote import Remote, storage_root
from tests.smoke.conftest import MAIN_FLAGS, curve, words_of
from tests.smoke.ray_nodes import RayNodes

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(900)]
FLAGS: dict[str, Any] = {
    "num_workers": 2,
    "cpus_per_worker": 1,
    "train_iters": 9,
    "save_interval": 3,
    "eval_interval": 3,
    "max_validation_samples": 8,
    "keep_last": 1,
    "keep_best": 1,
    "export_checkpoint": "best",
}


@pytest.fixture
def machines(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two machines with one CPU each, that of the driver and another one."""
    workspace = tmp_path / "cache"
    workspace.mkdir()
    monkeypatch.setenv("RAYMB_CACHE", str(workspace))
    cluster = RayNodes(1)
    cluster.add_apart("machine-b", workspace, 1)
    cluster.wait_for(2)
    yield cluster.address
    cluster.close()


@pytest.fixture
def finetune_on(machines: str, s3: str, tiny_qwen2: Path, rows: Path) -> Callable[..., str]:
    """Runs `raymb finetune` on both machines; what it said."""

    def run(*overrides: str, **flags: Any) -> str:
        given = {"hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": s3, "experiment_name": "run"}
        words = words_of({**given, **MAIN_FLAGS, **FLAGS, **flags, "ray_address": machines})
        command = [sys.executable, "-m", "raymb", "finetune", *overrides, *words]
        environment = {**os.environ, "PYTHONPATH": "src", "COLUMNS": "200"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        print(done.stderr)
        assert done.returncode == 0, done.stderr
        assert "placed: rank 0 on " in done.stderr or "on machine-b" in done.stderr, "both machines take part"
        return done.stderr

    return run


def _kept(remote: Remote) -> list[str]:
    return [name for name in remote.listing("checkpoints") if name.startswith("iter")]


def test_a_run_of_two_machines_keeps_resumes_exports_and_begins_anew(finetune_on: Callable[..., str], s3: str) -> None:
    """Rank 0, which has its own parts alone, found no checkpoint whole: `best` was never written, nothing was deleted,
    and --export_checkpoint best failed after the training."""
    finetune_on(experiment_name="whole", keep_last=None, keep_best=None)
    finetune_on("train.exit_interval=5")
    remote, whole = Remote(f"{s3}/run"), Remote(f"{s3}/whole")
    assert remote.read_text("checkpoints/latest") == "iter_0000005\n"
    said = finetune_on()
    assert "training from step 5" in said and "left out" not in said
    root = storage_root(s3)
    assert curve(root / "run") == curve(root / "whole")
    manifests = {name: json.loads(whole.read_text(f"checkpoints/{name}/manifest.json") or "") for name in _kept(whole)}
    assert sorted(manifests) == ["iter_0000003", "iter_0000006", "iter_0000009"]
    best = min(manifests, key=lambda name: manifests[name]["metric"])
    for one in (remote, whole):
        assert (one.read_text("checkpoints/best") or "").strip() == best
    assert _kept(remote) == sorted({best, "iter_0000009"})
    assert remote.read("hf/model.safetensors") == whole.read("hf/model.safetensors")
    remote.write_text("checkpoints/reshaped/iter_0000009/manifest.json", '{"step": 9, "files": {}}')
    again = finetune_on(overwrite=True)
    assert "training from step 0" in again or "loading the model" in again
    assert curve(root / "run") == curve(root / "whole") and _kept(remote) == sorted({best, "iter_0000009"})
    assert remote.listing("checkpoints/reshaped") == []

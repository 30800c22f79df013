"""Two machines that share nothing but a bucket: two Ray nodes on this machine, one with a file system of its own in the
place of the other's workspace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from raymb.storage.remote import Remote, storage_root
from tests.fault_table import Row
from tests.smoke.conftest import FAULTS, MAIN_FLAGS, curve, words_of
from tests.smoke.ray_nodes import RayNodes
from tests.smoke.test_faults import page

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
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each machine has a file system of its own in this place."""
    workspace = tmp_path / "cache"
    workspace.mkdir()
    monkeypatch.setenv("RAYMB_CACHE", str(workspace))
    return workspace


@pytest.fixture
def machines(s3: str, workspace: Path) -> Iterator[RayNodes]:
    """A cluster of two machines with one CPU each, that of the driver and another one."""
    cluster = RayNodes(1)
    cluster.add_apart("machine-b", workspace, 1)
    cluster.wait_for(2)
    yield cluster
    cluster.close()


@pytest.fixture
def start_on(
    machines: RayNodes, s3: str, tiny_qwen2: Path, rows: Path, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `raymb finetune` on both machines, with faults in its workers."""
    processes = []

    def start(*overrides: str, faults: Sequence[dict[str, Any]] = (), **flags: Any) -> subprocess.Popen[str]:
        (tmp_path / "faults.json").write_text(json.dumps(faults))
        given = {"hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": s3, "experiment_name": "run"}
        given |= {"env": [f"PYTHONPATH={FAULTS}{os.pathsep}src", f"RAYMB_FAULTS={tmp_path / 'faults.json'}"]}
        words = words_of({**given, **MAIN_FLAGS, **FLAGS, **flags, "ray_address": machines.address})
        command = [sys.executable, "-m", "raymb", "finetune", *overrides, *words]
        environment = {**os.environ, **machines.authentication, "PYTHONPATH": "src", "COLUMNS": "200"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


def ended(process: subprocess.Popen[str]) -> str:
    """What a run said that has finished on both machines."""
    said = process.communicate(timeout=600)[1]
    print(said)
    assert process.returncode == 0, said
    assert re.search(r"placed: ranks 0 on (\S+) .*, 1 on (?!\1 )", said), "both machines take part"
    return said


def kept(remote: Remote) -> list[str]:
    return [name for name in remote.listing("checkpoints") if name.startswith("iter")]


def test_a_run_of_two_machines_keeps_resumes_exports_and_begins_anew(
    start_on: Callable[..., subprocess.Popen[str]], s3: str, fault_table: list[Row]
) -> None:
    """Rank 0, which has its own parts alone, found no checkpoint whole: `best` was never written, nothing was deleted,
    and --export_checkpoint best failed after the training."""
    ended(start_on(experiment_name="whole", keep_last=None, keep_best=None))
    ended(start_on("train.exit_interval=5"))
    remote, whole, root = Remote(f"{s3}/run"), Remote(f"{s3}/whole"), storage_root(s3)
    assert remote.read_text("checkpoints/latest") == "iter_0000005\n"
    said = ended(start_on(faults=[{"do": "kill", "phase": "step", "host": "machine-b", "step": 7}]))
    assert "training from step 5" in said and "training from step 6" in said and "left out" not in said
    assert curve(root / "run") == curve(root / "whole")
    manifests = {name: json.loads(whole.read_text(f"checkpoints/{name}/manifest.json") or "") for name in kept(whole)}
    assert sorted(manifests) == ["iter_0000003", "iter_0000006", "iter_0000009"]
    best = min(manifests, key=lambda name: manifests[name]["metric"])
    for one in (remote, whole):
        assert (one.read_text("checkpoints/best") or "").strip() == best
    assert kept(remote) == sorted({best, "iter_0000009"})
    assert remote.read("hf/model.safetensors") == whole.read("hf/model.safetensors")
    found = page(root / "run", 1)
    fault_table.append(
        Row(
            "two machines, S3: SIGKILL of the rank on the other machine",
            "finishes, bit-exact; best, kept and exported as without",
            found["seconds to training again"],
            found["steps lost"],
        )
    )
    remote.write_text("checkpoints/reshaped/iter_0000009/manifest.json", '{"step": 9, "files": {}}')
    again = ended(start_on(overwrite=True))
    assert "training from step" not in again
    assert curve(root / "run") == curve(root / "whole") and kept(remote) == sorted({best, "iter_0000009"})
    assert remote.listing("checkpoints/reshaped") == []
    fault_table.append(Row("--overwrite of a run at a URI that has reshaped parts", "begins anew, bit-exact"))


def test_a_machine_is_lost_with_its_files_and_another_one_comes(
    start_on: Callable[..., subprocess.Popen[str]],
    machines: RayNodes,
    workspace: Path,
    s3: str,
    tmp_path: Path,
    fault_table: list[Row],
) -> None:
    ended(start_on(experiment_name="whole"))
    process = start_on(faults=[{"do": "machine", "phase": "step", "host": "machine-b", "step": 7}])
    while not (tmp_path / "faults.json.0").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
    machines.add_apart("machine-c", workspace, 1)
    said = ended(process)
    assert "training from step 6" in said
    root = storage_root(s3)
    assert curve(root / "run") == curve(root / "whole")
    weights = [Remote(f"{s3}/{name}").read("hf/model.safetensors") for name in ("run", "whole")]
    assert weights[0] is not None and weights[0] == weights[1]
    found = page(root / "run", 1)
    fault_table.append(
        Row(
            "two machines, S3: one is lost with its files, an empty one comes",
            "finishes there, bit-exact",
            found["seconds to training again"],
            found["steps lost"],
        )
    )

"""A model of a hub on this machine: one commit of it is trained, fetched once, whatever its branches do meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import MODEL, Hub
from tests.smoke.conftest import MAIN_FLAGS, read_metrics, words_of
from tests.writable_hub import WritableHub

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(900)]
FIRST, SECOND, THIRD = "1" * 40, "2" * 40, "3" * 40


def halved(model: Path, to: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, to)
    tensors = {name: tensor / 2 for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def distance(model: Path, other: Path) -> float:
    from safetensors.torch import load_file

    theirs = load_file(other / "model.safetensors")
    ours = load_file(model / "model.safetensors")
    return max((tensor - theirs[name]).abs().max().item() for name, tensor in ours.items())


@pytest.fixture
def hub(tiny_qwen2: Path, tmp_path: Path) -> Iterator[Hub]:
    second = halved(tiny_qwen2, tmp_path / "second")
    third = halved(second, tmp_path / "third")
    hub = Hub({FIRST: tiny_qwen2, SECOND: second, THIRD: third}, {"main": FIRST, "v2": SECOND})
    yield hub
    hub.close()


def raymb(hub: Hub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    hub.asked.clear()
    done = subprocess.run(
        [sys.executable, "-m", "raymb", *words],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": "src", "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)},
    )
    print(done.stderr, hub.asked, dict(hub.fetched))
    assert done.returncode == 0, done.stderr
    return done


def test_the_export_of_a_run_is_pushed(tiny_qwen2: Path, rows: Path, tmp_path: Path) -> None:
    hub = WritableHub()
    environment = {**os.environ, "PYTHONPATH": "src", "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "hf-home"), "HF_TOKEN": "hf_ann"}
    given: dict[str, Any] = {"hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": tmp_path, "num_workers": 1}
    given |= {"experiment_name": "run", "train_iters": 2, "peft": "lora", "push_to_hub": "ann/tuned"}

    def raymb(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "raymb", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)

    def files_of(directory: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    hub.full = True
    done = raymb("finetune", *words_of({**MAIN_FLAGS, **given}))
    run = tmp_path / "run"
    assert done.returncode == 1, done.stderr
    assert f"{run / 'adapter'} is whole, and is not pushed to ann/tuned" in done.stderr
    assert f"hf upload ann/tuned {run / 'adapter'} . --private" in done.stderr
    assert [record["step"] for record in read_metrics(run)] == [1, 2]

    hub.full = False
    done = raymb("export", str(run), "--merge", "--to", str(tmp_path / "later"), "--push_to_hub", "ann/tuned")
    assert done.returncode == 0 and f"pushed to {hub.endpoint}/ann/tuned" in done.stderr, done.stderr
    assert hub.repositories["ann/tuned"]["files"] == files_of(tmp_path / "later")
    assert hub.repositories["ann/tuned-merged"]["files"] == files_of(tmp_path / "later-merged")
    assert b"license" not in hub.repositories["ann/tuned"]["files"]["README.md"], "the tiny model has none"

    done = raymb("finetune", *words_of({**MAIN_FLAGS, **given, "experiment_name": "whole", "peft": "none"}))
    assert done.returncode == 0 and f"{hub.endpoint}/ann/tuned" in done.stderr, done.stderr
    there = hub.repositories["ann/tuned"]
    assert there["private"] and files_of(tmp_path / "whole" / "hf").items() <= there["files"].items()
    for file in [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]:
        assert b"hf_ann" not in file.read_bytes(), f"{file} has the token"
    hub.close()


def test_the_commit_of_a_revision_is_trained_and_named(hub: Hub, rows: Path, tmp_path: Path) -> None:
    run, home = tmp_path / "run", tmp_path / "hf-home"
    given: dict[str, Any] = {"hf_model_path": MODEL, "hf_revision": "v2", "dataset": rows, "storage_path": tmp_path}
    given |= {"num_workers": 4, "experiment_name": "run", "train_iters": 2, "tensor_parallel_size": 2}
    given |= {"peft": "lora", "learning_rate": 1e-6, "merge": True}
    raymb(hub, home, "finetune", *words_of({**MAIN_FLAGS, **given}))
    assert [record["step"] for record in read_metrics(run)] == [1, 2]
    assert hub.fetched["model.safetensors"] == 1
    assert sum("/tree/" in path for path in hub.asked) == 1  # the list of its files
    assert sum("/model.safetensors" in path for path in hub.asked) == 2  # of one rank: where is it, and the file itself
    assert distance(run / "hf", tmp_path / "second") < 1e-4 < 0.1 < distance(run / "hf", hub.commits[FIRST])
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (MODEL, SECOND)
    assert f"An adapter for {MODEL} at commit {SECOND}" in (run / "adapter" / "README.md").read_text()
    assert json.loads((run / "spec.json").read_text())["model"]["hf_revision"] == SECOND
    model = json.loads((run / "checkpoints" / "fingerprint.json").read_text())["model"]
    assert model == {"hf_model_path": MODEL, "hf_revision": SECOND, "branch": "v2"}

    hub.branches["v2"] = THIRD
    done = raymb(hub, home, "finetune", *words_of({**MAIN_FLAGS, **given, "train_iters": 3}))
    moved = f"v2 of {MODEL} is at commit {THIRD} by now; this run keeps {SECOND}, with which it began"
    assert done.stderr.count(moved) == 1
    assert [record["step"] for record in read_metrics(run)] == [1, 2, 3]
    assert not any(SECOND in path for path in hub.asked) and hub.fetched["model.safetensors"] == 1
    assert distance(run / "hf", tmp_path / "second") < 1e-4

    raymb(hub, home, "generate", str(run / "adapter"), "--prompt", "alpha", "--max_new_tokens", "2", "--compare")
    assert not hub.asked and hub.fetched["model.safetensors"] == 1

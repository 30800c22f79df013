"""The run directory: who may use it, what is refused and with which ways out, what is deleted and what stays."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raymb.errors import RunDirError
from raymb.run.directory import RunDir, check_claim, claim, release
from raymb.run.fingerprint import Fingerprint
from raymb.spec import RunSpec, load_spec
from raymb.storage.files import write_atomically

VERSIONS = {
    "raymb": "0.1.0",
    "megatron-bridge": "0.6.2",
    "megatron-core": "0.19.2",
    "torch": "2.11.0",
    "transformers": "5.12.1",
}
FINGERPRINT: Fingerprint = {
    "model": {"config.json": "aa", "model.safetensors": "ab"},
    "tokenizer": {"tokenizer.json": "ac", "template": None, "eos_token": "<e>"},
    "data": {"rows": "bb", "preparation": "bc", "dataset": ["a.jsonl"], "loss_mode": "assistant"},
    "batch": {"seq_length": 64, "global_batch_size": 8, "packing": True},
    "seed": {"seed": 1234},
    "versions": VERSIONS,
}
FLAT = {
    "hf_model_path:config.json": "aa",
    "hf_model_path:tokenizer.json": "ac",
    "hf_model_path:model.safetensors": "ab",
    "dataset:content": "bb",
    "seq_length": 64,
    "global_batch_size": 8,
    "seed": 1234,
}
"""As raymb wrote it before there were groups."""


def changed(**groups: dict[str, Any]) -> Fingerprint:
    return {**FINGERPRINT, **{group: {**FINGERPRINT.get(group, {}), **values} for group, values in groups.items()}}


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    return _spec(tmp_path)


def _spec(tmp_path: Path, **flags: Any) -> RunSpec:
    storage = {"storage_path": str(tmp_path / "runs"), "experiment_name": "one"}
    return load_spec({"hf_model_path": "owner/name", **storage, **flags})


def _claimed(spec: RunSpec) -> RunDir:
    run = RunDir.of(spec, "unused")
    claim(run, spec, {"num_workers": 1}, FINGERPRINT)
    return run


def _released(spec: RunSpec) -> RunDir:
    run = _claimed(spec)
    release(run)
    return run


def _checkpoint(run: RunDir, step: int = 5) -> None:
    (run.checkpoints / f"iter_{step:07d}").mkdir()
    (run.checkpoints / "latest").write_text(f"iter_{step:07d}\n")


def test_claim_writes_what_the_run_is(tmp_path: Path, spec: RunSpec) -> None:
    run = _claimed(spec)
    assert run.path == tmp_path / "runs" / "one"
    assert json.loads(run.spec.read_text())["model"]["hf_model_path"] == "owner/name"
    assert json.loads(run.plan.read_text()) == {"num_workers": 1}
    assert json.loads(run.fingerprint.read_text()) == FINGERPRINT
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints",
        "lock",
        "logs",
        "plan.json",
        "spec.json",
    ]


def test_name_comes_from_the_run_when_the_user_gave_none(tmp_path: Path) -> None:
    spec = load_spec({"hf_model_path": "owner/name", "storage_path": str(tmp_path)})
    assert RunDir.of(spec, "name-tp1").path == tmp_path / "name-tp1"


def test_same_run_resumes(spec: RunSpec) -> None:
    run = _released(spec)
    _checkpoint(run)
    check_claim(run, spec, FINGERPRINT)
    claim(run, spec, {}, FINGERPRINT)
    assert (run.checkpoints / "latest").exists()


# Locks


def test_lock_of_a_live_process_counts_however_old(spec: RunSpec) -> None:
    run = _claimed(spec)
    os.utime(run.lock, (1, 1))
    with pytest.raises(RunDirError, match=f"in use by process {os.getpid()} on {socket.gethostname()}") as caught:
        check_claim(run, spec, FINGERPRINT)
    assert "--experiment_name" in caught.value.hint and "--storage_path" in caught.value.hint
    with pytest.raises(RunDirError, match="in use"):
        claim(run, spec, {}, FINGERPRINT)


def test_overwrite_does_not_break_a_lock(tmp_path: Path, spec: RunSpec) -> None:
    run = _claimed(spec)
    with pytest.raises(RunDirError, match="in use"):
        check_claim(run, _spec(tmp_path, overwrite="true"), FINGERPRINT)


def test_lock_of_a_dead_process_is_stale(spec: RunSpec) -> None:
    run = _released(spec)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    run.lock.write_text(f"{socket.gethostname()} {ended.pid} 1\n")
    check_claim(run, spec, FINGERPRINT)
    claim(run, spec, {}, FINGERPRINT)
    assert f" {os.getpid()} " in run.lock.read_text()


# Refusals


def test_resume_never_is_refused_with_three_ways_out(tmp_path: Path, spec: RunSpec) -> None:
    run = _released(spec)
    with pytest.raises(RunDirError, match="holds a run already") as caught:
        check_claim(run, _spec(tmp_path, resume="never"), FINGERPRINT)
    for way_out in ("--resume auto", "--experiment_name NEW_NAME", "--overwrite"):
        assert way_out in caught.value.hint


def test_resume_never_takes_a_new_directory(tmp_path: Path) -> None:
    spec = _spec(tmp_path, resume="never")
    check_claim(RunDir.of(spec, ""), spec, FINGERPRINT)


def test_every_difference_is_named_with_the_ways_out(spec: RunSpec) -> None:
    run = _released(spec)
    now = changed(
        model={"config.json": "cc"},
        tokenizer={"eos_token": "<f>"},
        data={"rows": "dd", "preparation": "de", "dataset": ["b.jsonl"]},
        batch={"seq_length": 32, "packing": False},
        seed={"seed": 7},
        versions={"torch": "2.12.0"},
    )
    with pytest.raises(RunDirError) as caught:
        check_claim(run, spec, now)
    assert caught.value.message.splitlines() == [
        f"{run.checkpoints} holds the checkpoints of another run:",
        "  - model: config.json was 'aa', is 'cc'",
        "  - tokenizer: eos_token was '<e>', is '<f>'",
        "  - data: rows was 'bb', is 'dd'; dataset was ['a.jsonl'], is ['b.jsonl']",
        "  - batch: seq_length was 64, is 32; packing was True, is False",
        "  - seed: seed was 1234, is 7",
        "  - versions: torch was '2.11.0', is '2.12.0'",
    ]
    assert caught.value.hint == (
        "ways out: resume as before with the former files at --hf_model_path, the former tokenizer at --hf_model_path "
        "(or --chat_template), --dataset a.jsonl, --seq_length 64, --packing, --seed 1234, the former versions; "
        "accept the changes with --accept_changes model --accept_changes tokenizer --accept_changes data "
        "--accept_changes batch --accept_changes seed --accept_changes versions; "
        "--experiment_name NEW_NAME for a new run, --overwrite to delete this one"
    )


def test_accepted_changes_resume_and_are_what_the_run_has_from_then_on(tmp_path: Path, spec: RunSpec) -> None:
    run = _released(spec)
    now = changed(batch={"global_batch_size": 16}, seed={"seed": 7})
    with pytest.raises(RunDirError, match="seed was 1234, is 7") as caught:
        check_claim(run, _spec(tmp_path, accept_changes="batch"), now)
    assert "global_batch_size" not in str(caught.value) and "--accept_changes seed;" in caught.value.hint
    accepting = _spec(tmp_path, accept_changes=["seed", "batch"])
    check_claim(run, accepting, now)
    assert json.loads(run.fingerprint.read_text()) == FINGERPRINT
    claim(run, accepting, {}, now)
    release(run)
    assert json.loads(run.fingerprint.read_text()) == now
    check_claim(run, spec, now)


@pytest.mark.parametrize(
    "now",
    [
        {"torch": "2.11.0+cu130"},
        {"torch": "2.11.1", "transformers": "5.12.0", "raymb": "0.1.7"},
        {"torch": "2.11.0a0+git1234"},
    ],
)
def test_patch_releases_and_builds_resume_and_are_recorded(now: dict[str, str], spec: RunSpec) -> None:
    """A run of a CPU machine resumes with the CUDA build, and back."""
    run = _released(spec)
    check_claim(run, spec, changed(versions=now))
    claim(run, spec, {}, changed(versions=now))
    release(run)
    assert json.loads(run.fingerprint.read_text())["versions"] == VERSIONS | now
    check_claim(run, spec, FINGERPRINT)


@pytest.mark.parametrize(
    "now",
    [
        {"torch": "2.12.0"},
        {"transformers": "6.12.1"},
        {"raymb": "0.2.0"},
        {"megatron-core": "0.19.3"},
        {"megatron-bridge": "0.6.2+local"},
        {"torch": None},
    ],
)
def test_other_versions_are_refused(now: dict[str, Any], spec: RunSpec) -> None:
    run = _released(spec)
    (name, version) = next(iter(now.items()))
    with pytest.raises(RunDirError, match=re.escape(f"{name} was {VERSIONS[name]!r}, is {version!r}")):
        check_claim(run, spec, changed(versions=now))


def test_equal_rows_are_no_change_whatever_they_were_made_of(spec: RunSpec) -> None:
    run = _released(spec)
    check_claim(run, spec, changed(data={"preparation": "xx", "dataset": ["moved.jsonl"], "loss_mode": "full"}))


def test_a_group_that_one_side_lacks_counts_as_empty(tmp_path: Path, spec: RunSpec) -> None:
    """So a later group that is empty by default needs no other file, and one from a later raymb is not overlooked."""
    run = _released(spec)
    check_claim(run, spec, {**FINGERPRINT, "peft": {}})
    claim(run, spec, {}, {**FINGERPRINT, "peft": {"lora_rank": 8}})
    release(run)
    with pytest.raises(RunDirError, match="peft: lora_rank was 8, is None") as caught:
        check_claim(run, spec, FINGERPRINT)
    assert "--accept_changes" not in caught.value.hint  # not a group that a flag can accept


def test_adapters_of_before_there_were_all_of_their_flags(spec: RunSpec) -> None:
    run = _released(spec)
    claim(run, spec, {}, changed(peft={"lora_rank": 8}))
    release(run)
    now = {"lora_rank": 8, "modules_to_save": []}
    check_claim(run, spec, changed(peft={**now, "use_rslora": False}))
    with pytest.raises(RunDirError, match="peft: use_rslora was False, is True") as caught:
        check_claim(run, spec, changed(peft={**now, "use_rslora": True}))
    assert "--no_use_rslora" in caught.value.hint
    with pytest.raises(RunDirError, match=r"peft: modules_to_save was \[\], is \['lm_head'\]") as caught:
        check_claim(run, spec, changed(peft={"lora_rank": 8, "use_rslora": False, "modules_to_save": ["lm_head"]}))
    assert "no --modules_to_save" in caught.value.hint


def test_a_fingerprint_without_groups_is_read(spec: RunSpec) -> None:
    run = _released(spec)
    run.fingerprint.write_text(json.dumps(FLAT | {"dataset:content": "bc"}))  # it named the preparation
    check_claim(run, spec, FINGERPRINT)
    check_claim(run, spec, changed(versions={"torch": "3.0.0"}))  # of which it says nothing
    run.fingerprint.write_text(json.dumps({"hf_model_path": "owner/name@main", "seed": 1234}))
    check_claim(run, spec, {"model": {"hf_model_path": "owner/name", "hf_revision": "c0"}, "seed": {"seed": 1234}})
    claim(run, spec, {}, FINGERPRINT)
    assert json.loads(run.fingerprint.read_text()) == FINGERPRINT


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("hf_model_path:config.json", "model: config.json was 'zz', is 'aa'"),
        ("hf_model_path:old.safetensors", "model: old.safetensors was 'zz', is None"),
        ("hf_model_path:tokenizer.json", "tokenizer: tokenizer.json was 'zz', is 'ac'"),
        ("hf_model_path", "model: hf_model_path was '', is None"),
        ("dataset:content", "data: rows was 'zz', is 'bb'"),
        ("seq_length", "batch: seq_length was 'zz', is 64"),
        ("seed", "seed: seed was 'zz', is 1234"),
        ("experiment_name", "run: experiment_name was 'zz', is None"),
        ("what is this", "batch: what is this was 'zz', is None"),
    ],
)
def test_a_fingerprint_without_groups_is_compared(key: str, line: str, spec: RunSpec) -> None:
    run = _released(spec)
    run.fingerprint.write_text(json.dumps(FLAT | {key: "zz"}))
    with pytest.raises(RunDirError) as caught:
        check_claim(run, spec, FINGERPRINT)
    assert caught.value.message.splitlines()[1:] == [f"  - {line}"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
def test_unreadable_fingerprint_is_refused(text: str, spec: RunSpec) -> None:
    run = _released(spec)
    run.fingerprint.write_text(text)
    with pytest.raises(RunDirError, match=r"fingerprint\.json cannot be read") as caught:
        check_claim(run, spec, FINGERPRINT)
    assert "--experiment_name NEW_NAME" in caught.value.hint and "--overwrite" in caught.value.hint


def test_output_dir_of_another_run_is_refused(tmp_path: Path) -> None:
    """Equal fingerprint or not: a run never loads another run's checkpoint."""
    shared = str(tmp_path / "shared")
    _checkpoint(_released(_spec(tmp_path, output_dir=shared)))
    other = _spec(tmp_path, output_dir=shared, experiment_name="two")
    with pytest.raises(RunDirError, match="experiment_name was 'one', is 'two'") as caught:
        check_claim(RunDir.of(other, ""), other, FINGERPRINT)
    assert "with --experiment_name one;" in caught.value.hint and "another --output_dir" in caught.value.hint
    assert "--accept_changes" not in caught.value.hint
    check_claim(RunDir.of(_spec(tmp_path, output_dir=shared), ""), _spec(tmp_path, output_dir=shared), FINGERPRINT)


# Overwriting


def test_overwrite_deletes_what_raymb_makes_and_nothing_else(tmp_path: Path, spec: RunSpec) -> None:
    run = _released(spec)
    _checkpoint(run)
    (run.checkpoints / "latest_train_state.pt").write_text("")
    run.metrics.write_text("{}\n")
    (run.hf / "deep").mkdir(parents=True)
    run.tensorboard.mkdir()
    (run.path / "notes.txt").write_text("mine")
    again = _spec(tmp_path, overwrite="true", seed="7")
    check_claim(run, again, changed(seed={"seed": 7}))
    claim(run, again, {}, changed(seed={"seed": 7}))
    assert [path.name for path in run.checkpoints.iterdir()] == ["fingerprint.json"]
    assert not any(path.exists() for path in (run.metrics, run.hf, run.tensorboard))
    assert (run.path / "notes.txt").read_text() == "mine"
    assert json.loads(run.fingerprint.read_text())["seed"] == {"seed": 7}


def test_overwrite_leaves_foreign_files_in_output_dir(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    flags = {"output_dir": str(shared)}
    _checkpoint(_released(_spec(tmp_path, **flags)))
    foreign = ["latest-news.txt", "latest_weights.bin", "iter_notes", "model.safetensors"]
    for name in foreign:
        (shared / name).write_text("mine")
    (shared / "iter_best").mkdir()
    _claimed(_spec(tmp_path, overwrite="true", **flags))
    assert sorted(path.name for path in shared.iterdir()) == sorted([*foreign, "iter_best", "fingerprint.json"])


# Storage that cannot be written


def test_storage_below_a_file_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = _spec(tmp_path, storage_path=str(tmp_path / "file" / "runs"))
    run = RunDir.of(spec, "")
    check_claim(run, spec, FINGERPRINT)
    with pytest.raises(RunDirError, match=r"cannot write .*Not a directory") as caught:
        claim(run, spec, {}, FINGERPRINT)
    assert "--storage_path" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_dir_below_a_file_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = _spec(tmp_path, output_dir=str(tmp_path / "file" / "checkpoints"))
    with pytest.raises(RunDirError, match=r"cannot write .*file/checkpoints: Not a directory") as caught:
        _claimed(spec)
    assert "--output_dir" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_failed_claim_leaves_an_older_directory_unlocked_and_other_runs_alone(tmp_path: Path, spec: RunSpec) -> None:
    run = RunDir.of(spec, "")
    run.path.mkdir(parents=True)
    run.logs.write_text("a file where a directory must go")
    other = tmp_path / "runs" / "other"
    other.mkdir()
    with pytest.raises(RunDirError, match="cannot write"):
        claim(run, spec, {}, FINGERPRINT)
    assert not run.lock.exists() and run.logs.exists() and other.is_dir()


def test_write_atomically_keeps_the_old_content_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "spec.json"
    write_atomically(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]

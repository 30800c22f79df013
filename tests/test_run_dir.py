"""The run directory: who may use it, what is refused and with which ways out, what is deleted and what stays."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raymb import run_dir
from raymb.errors import RunDirError
from raymb.run_dir import RunDir, check_claim, claim, release, write_atomically
from raymb.spec import RunSpec, load_spec

FINGERPRINT = {"hf_model_path:config.json": "aa", "dataset:content": "bb", "seed": 1234}


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


def test_same_run_goes_on(spec: RunSpec) -> None:
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


def test_lock_of_an_earlier_process_with_the_same_number_is_stale(spec: RunSpec) -> None:
    """A container that is started again keeps its host name, and its driver is process 1 again."""
    run = _released(spec)
    run.lock.write_text(f"{socket.gethostname()} {os.getpid()} 1\n")
    check_claim(run, spec, FINGERPRINT)


def test_lock_of_another_host_is_stale_by_age(spec: RunSpec) -> None:
    run = _released(spec)
    run.lock.write_text("another-host 1 1\n")
    with pytest.raises(RunDirError, match="process 1 on another-host"):
        check_claim(run, spec, FINGERPRINT)
    old = time.time() - 61
    os.utime(run.lock, (old, old))
    check_claim(run, spec, FINGERPRINT)
    run_dir.touch_lock(run)
    with pytest.raises(RunDirError, match="in use"):
        check_claim(run, spec, FINGERPRINT)


def test_lock_that_is_being_written_counts_while_young(spec: RunSpec) -> None:
    run = _released(spec)
    run.lock.write_text("")
    with pytest.raises(RunDirError, match="in use by another run"):
        check_claim(run, spec, FINGERPRINT)
    os.utime(run.lock, (1, 1))
    check_claim(run, spec, FINGERPRINT)


def test_touch_and_release_without_a_lock_do_nothing(spec: RunSpec) -> None:
    run = _released(spec)
    run_dir.touch_lock(run)
    release(run)
    assert not run.lock.exists()


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


def test_other_fingerprint_names_difference_and_flag(spec: RunSpec) -> None:
    run = _released(spec)
    with pytest.raises(RunDirError, match=r"another run: hf_model_path:config\.json was 'aa', is 'cc'") as caught:
        check_claim(run, spec, FINGERPRINT | {"hf_model_path:config.json": "cc"})
    for way_out in ("--hf_model_path", "--experiment_name NEW_NAME", "--overwrite"):
        assert way_out in caught.value.hint


def test_every_difference_is_named(spec: RunSpec) -> None:
    run = _released(spec)
    with pytest.raises(RunDirError, match="dataset:content was 'bb', is 'dd'; seed was 1234, is 7"):
        check_claim(run, spec, FINGERPRINT | {"dataset:content": "dd", "seed": 7})


def test_unreadable_fingerprint_is_refused(spec: RunSpec) -> None:
    run = _released(spec)
    run.fingerprint.write_text("{")
    with pytest.raises(RunDirError, match="was None"):
        check_claim(run, spec, FINGERPRINT)


def test_output_dir_of_another_run_is_refused(tmp_path: Path) -> None:
    """Equal fingerprint or not: a run never loads another run's checkpoint."""
    shared = str(tmp_path / "shared")
    _checkpoint(_released(_spec(tmp_path, output_dir=shared)))
    other = _spec(tmp_path, output_dir=shared, experiment_name="two")
    with pytest.raises(RunDirError, match="experiment_name was 'one', is 'two'") as caught:
        check_claim(RunDir.of(other, ""), other, FINGERPRINT)
    assert "another --output_dir" in caught.value.hint
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
    check_claim(run, again, FINGERPRINT | {"seed": 7})
    claim(run, again, {}, FINGERPRINT | {"seed": 7})
    assert [path.name for path in run.checkpoints.iterdir()] == ["fingerprint.json"]
    assert not any(path.exists() for path in (run.metrics, run.hf, run.tensorboard))
    assert (run.path / "notes.txt").read_text() == "mine"
    assert json.loads(run.fingerprint.read_text())["seed"] == 7


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


def test_claim_forgets_the_checkpoints_that_ray_was_told_of(spec: RunSpec) -> None:
    """Ray Train 2.60 reads this file in the next fit() and refuses to start when a checkpoint in it was deleted."""
    run = _released(spec)
    run.ray_snapshot.write_text("{}")
    claim(run, spec, {}, FINGERPRINT)
    assert not run.ray_snapshot.exists()


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

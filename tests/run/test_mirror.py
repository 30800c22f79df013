"""A run at a URI: what a machine sees of it before it starts, what its driver pushes, and who may drive."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from raymb.data.sharing import fetch_rows, share_rows
from raymb.errors import RunDirError, StorageError
from raymb.run import directory as run_dir
from raymb.run import remote_lock
from raymb.run.directory import RunDir
from raymb.run.mirror import Mirror, delete_old_run, pull, pushing
from raymb.run.remote_lock import RemoteLock
from raymb.spec import load_spec
from raymb.storage.lock import this_process
from raymb.storage.remote import Remote, storage_root

MANIFEST = json.dumps({"step": 5, "files": {"shard": {"bytes": 5, "sha256": "aa"}}})


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    return f"memory://{uuid.uuid4().hex}"


def spec_of(storage: str, **flags: Any) -> Any:
    return load_spec({"hf_model_path": "owner/name", "storage_path": storage, "experiment_name": "one", **flags})


@pytest.fixture
def run(storage: str) -> RunDir:
    return RunDir.of(spec_of(storage), "")


@pytest.fixture
def remote(run: RunDir) -> Remote:
    assert run.remote is not None
    return run.remote


def write(run: RunDir, **files: str) -> None:
    for name, content in files.items():
        place = run.path / name.replace("__", "/").replace("_json", ".json").replace("metrics", "metrics.jsonl")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)


def tree(directory: Path) -> dict[str, str]:
    return {str(file.relative_to(directory)): file.read_text() for file in directory.rglob("*") if file.is_file()}


# Pulling


def test_a_new_machine_sees_the_run(run: RunDir, remote: Remote) -> None:
    files = {
        "spec.json": "{}",
        "plan.json": "{}",
        "data.json": "{}",
        "metrics.jsonl": '{"step": 1}\n',
        "checkpoints/fingerprint.json": '{"seed": 1}',
        "checkpoints/latest": "iter_0000005\n",
        "checkpoints/best": "iter_0000005\n",
        "checkpoints/iter_0000005/manifest.json": MANIFEST,
        "failures/1.md": "# failed\n",
        "logs/worker-00000.log": "hello\n",
    }
    for name, content in files.items():
        remote.write_text(name, content)
    remote.write_text("checkpoints/iter_0000005/shard", "large")
    remote.write_text("hf/config.json", "{}")
    pull(run)
    assert tree(run.path) == files
    pull(run)
    assert tree(run.path) == files


def test_pulling_where_nothing_is_makes_nothing(run: RunDir) -> None:
    pull(run)
    assert not run.path.exists()


def test_a_local_run_is_left_alone(tmp_path: Path) -> None:
    run = RunDir.of(spec_of(str(tmp_path)), "")
    write(run, spec_json="{}")
    lock = RemoteLock(run)
    pull(run)
    Mirror(run).push()
    delete_old_run(run)
    lock.take()
    lock.release()
    share_rows(tmp_path / "rows", tmp_path)
    with pushing(run, print) as mirror:
        assert mirror.pushed == {}
    assert tree(tmp_path) == {"one/spec.json": "{}"}


def test_the_remote_is_the_truth(run: RunDir, remote: Remote) -> None:
    write(run, spec_json="old", plan_json="gone", metrics="old\nlines\n", notes="mine")
    write(run, checkpoints__latest="iter_0000009\n", checkpoints__best="iter_0000005\n")
    write(run, checkpoints__iter_0000005__manifest_json=MANIFEST, checkpoints__iter_0000005__shard="12345")
    write(run, checkpoints__iter_0000007__manifest_json=MANIFEST, checkpoints__iter_0000007__shard="54321")
    write(run, checkpoints__iter_0000008__shard="half written")
    write(run, checkpoints__iter_0000009__manifest_json=MANIFEST, checkpoints__iter_0000009__shard="never pushed")
    later = json.dumps({**json.loads(MANIFEST), "metric": 2.5}, indent=1)
    remote.write_text("spec.json", "new")
    remote.write_text("metrics.jsonl", "new\n")
    remote.write_text("checkpoints/latest", "iter_0000007\n")
    remote.write_text("checkpoints/iter_0000005/manifest.json", later)
    remote.write_text("checkpoints/iter_0000007/manifest.json", MANIFEST.replace("aa", "bb"))
    pull(run)
    assert tree(run.path) == {
        "spec.json": "new",
        "metrics.jsonl": "new\n",
        "notes": "mine",
        "checkpoints/latest": "iter_0000007\n",
        "checkpoints/iter_0000005/manifest.json": later,
        "checkpoints/iter_0000005/shard": "12345",
        "checkpoints/iter_0000007/manifest.json": MANIFEST.replace("aa", "bb"),
    }


@pytest.mark.parametrize(
    ("here", "there", "after"),
    [
        ("1\n2\n3\n", "1\n2\n", "1\n2\n3\n"),
        ("1\n2\n", "1\n2\n3\n", "1\n2\n3\n"),
        ("1\nother\n3\n", "1\n2\n", "1\n2\n"),
        ("1\n", None, None),
    ],
)
def test_metrics_of_a_crashed_driver(
    run: RunDir, remote: Remote, here: str, there: str | None, after: str | None
) -> None:
    write(run, metrics=here)
    if there is not None:
        remote.write_text("metrics.jsonl", there)
    pull(run)
    assert (run.metrics.read_text() if run.metrics.exists() else None) == after


def test_logs_continue_where_they_ended_elsewhere(run: RunDir, remote: Remote) -> None:
    write(run, logs__a="1\n2\n", logs__b="1\n", logs__c="mine\n")
    remote.write_text("logs/a", "1\n")
    remote.write_text("logs/b", "1\n2\n")
    remote.write_text("logs/deep/er", "")
    pull(run)
    assert tree(run.logs) == {"a": "1\n2\n", "b": "1\n2\n", "c": "mine\n"}


def test_checkpoints_elsewhere_are_left_alone(tmp_path: Path, storage: str) -> None:
    run = RunDir.of(spec_of(storage, output_dir=str(tmp_path / "elsewhere")), "")
    (run.checkpoints / "iter_0000005").mkdir(parents=True)
    (run.checkpoints / "latest").write_text("iter_0000005\n")
    pull(run)
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["iter_0000005", "latest"]


def test_a_workspace_in_use_is_left_alone(run: RunDir, remote: Remote, storage: str) -> None:
    run_dir.claim(run, spec_of(storage), {}, {})
    remote.write_text("spec.json", "{}")
    before = tree(run.path)
    pull(run)
    assert tree(run.path) == before


def test_what_cannot_be_pulled_is_refused(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path))
    monkeypatch.setattr("raymb.storage.transfer._SECONDS_FOR_AN_ANSWER", 0.2)
    monkeypatch.setattr("raymb.storage.transfer._PAUSES", ())
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RunDirError, match=r"--storage_path s3://.*cannot be"):
        pull(RunDir.of(spec_of(s3), ""))


def test_a_workspace_that_cannot_be_written_is_refused(run: RunDir, remote: Remote) -> None:
    remote.write_text("spec.json", "{}")
    run.path.parent.parent.mkdir(parents=True)
    run.path.parent.write_text("a file")
    with pytest.raises(RunDirError, match="which stands for --storage_path here, cannot be written") as caught:
        pull(run)
    assert "RAYMB_CACHE" in caught.value.hint


# Pushing


def uploads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    real = Remote.upload

    def upload(self: Remote, local: Path, name: str) -> None:
        names.append(name)
        real(self, local, name)

    monkeypatch.setattr(Remote, "upload", upload)
    return names


def test_push_uploads_what_has_changed(run: RunDir, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    names = uploads(monkeypatch)
    write(run, spec_json="{}", metrics="1\n", checkpoints__fingerprint_json="{}", tensorboard__events="e")
    write(run, logs__worker="w", failures__page="f", lock="mine", hf__config_json="{}")
    write(run, checkpoints__latest="iter_0000005\n", checkpoints__iter_0000005__manifest_json=MANIFEST)
    (run.logs / ".half.12345678.tmp").write_text("")
    mirror = Mirror(run)
    mirror.push()
    pushed = ["checkpoints/fingerprint.json", "failures/page", "logs/worker", "metrics.jsonl", "spec.json"]
    assert sorted(names) == [*pushed, "tensorboard/events"]
    names.clear()
    mirror.push()
    assert names == []
    write(run, metrics="1\n2\n")
    os.utime(run.logs / "worker", (1, 1))
    mirror.push()
    assert sorted(names) == ["logs/worker", "metrics.jsonl"] and remote.read_text("metrics.jsonl") == "1\n2\n"
    assert remote.listing("checkpoints") == ["fingerprint.json"]


def test_a_failed_push_is_tried_again(run: RunDir, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, spec_json="{}", metrics="1\n")
    real, mirror = Remote.upload, Mirror(run)

    def upload(self: Remote, local: Path, name: str) -> None:
        if name == "metrics.jsonl":
            raise StorageError("no")
        real(self, local, name)

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "upload", upload)
        with pytest.raises(StorageError):
            mirror.push()
    mirror.push()
    assert remote.read_text("metrics.jsonl") == "1\n" and remote.read_text("spec.json") == "{}"


def test_a_file_that_goes_during_a_push(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, logs__worker="w")
    mirror, real = Mirror(run), Remote.upload

    def upload(self: Remote, local: Path, name: str) -> None:
        local.unlink()
        real(self, local, name)

    monkeypatch.setattr(Remote, "upload", upload)
    mirror.push()
    assert mirror.pushed == {}


def test_a_worker_pushes_its_own_log(run: RunDir, remote: Remote) -> None:
    write(run, logs__zero="0", logs__one="1", spec_json="{}")
    Mirror(run, ("logs/one", "logs/none")).push()
    assert remote.listing() == ["logs"] and remote.listing("logs") == ["one"]


def test_pushing_now_and_again_and_at_the_end(run: RunDir, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, metrics="1\n")
    said: list[str] = []
    with pushing(run, said.append, seconds=0.05):
        assert remote.read_text("metrics.jsonl") == "1\n"
        write(run, metrics="1\n2\n")
        wait_until(lambda: remote.read_text("metrics.jsonl") == "1\n2\n")
        with monkeypatch.context() as patch:
            patch.setattr(Mirror, "_push", fail)
            write(run, metrics="1\n2\n3\n")
            wait_until(lambda: said)
        assert said[0] == "storage is away"
        write(run, metrics="1\n2\n3\n4\n")
    assert remote.read_text("metrics.jsonl") == "1\n2\n3\n4\n"


def test_what_ended_the_run_comes_before_a_failed_push(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, metrics="1\n")
    said: list[str] = []
    with pytest.raises(KeyError), pushing(run, said.append):
        monkeypatch.setattr(Mirror, "_push", fail)
        write(run, metrics="1\n2\n")
        raise KeyError
    assert said == ["storage is away"]
    with pytest.raises(StorageError), pushing(run, said.append):
        pass


def fail(*words: Any) -> None:
    raise StorageError("storage is away")


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_overwrite_deletes_what_raymb_makes(run: RunDir, remote: Remote) -> None:
    ours = ["spec.json", "metrics.jsonl", "hf/config.json", "logs/a", "failures/1.md", "tensorboard/e", "job.json"]
    ours += ["checkpoints/latest", "checkpoints/iter_0000005/manifest.json", "checkpoints/iter_0000005/shard"]
    # A new run resumed the old one from these.
    ours += ["checkpoints/reshaped/iter_0000005/manifest.json", "checkpoints/reshaped/iter_0000005/shard"]
    ours += ["hf-step-5/config.json", "adapter-step-5/README.md", "hf-failed/x", "evaluation/x", "profile/x"]
    ours += ["checkpoints/left_out_steps.json", "checkpoints/fingerprint.json", "report.html", "events.jsonl"]
    for name in [*ours, "notes.txt", "checkpoints/iter_notes", "lock"]:
        remote.write_text(name, "")
    delete_old_run(run)
    assert remote.listing() == ["checkpoints", "lock", "notes.txt"] and remote.listing("checkpoints") == ["iter_notes"]
    delete_old_run(run)


# The lock


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is a hundredth of one, but for a busy machine's sake not where somebody is waited for."""
    for name in ("BETWEEN_BEATS", "BETWEEN_LOOKS", "FOR_ANOTHER_TAKER"):
        monkeypatch.setattr(remote_lock, f"_SECONDS_{name}", getattr(remote_lock, f"_SECONDS_{name}") / 100)
    monkeypatch.setattr(remote_lock, "_STALE_AFTER", 1.5)


@pytest.fixture(params=["memory", "file", "s3"])
def locked(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: None) -> RunDir:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    uris = {"memory": f"memory://{uuid.uuid4().hex}", "file": f"file://{tmp_path}/there"}
    if request.param == "s3":  # S3 says when an object was written to the second, so a live driver beats slowly enough
        monkeypatch.setattr(remote_lock, "_SECONDS_BETWEEN_BEATS", 1.1)
        monkeypatch.setattr(remote_lock, "_SECONDS_BETWEEN_LOOKS", 0.2)
        monkeypatch.setattr(remote_lock, "_STALE_AFTER", 20.0)
        return RunDir.of(spec_of(request.getfixturevalue("s3")), "")
    return RunDir.of(spec_of(uris[request.param]), "")


def test_one_driver_at_a_time(locked: RunDir) -> None:
    assert locked.remote is not None
    first, second = RemoteLock(locked), RemoteLock(locked)
    first.take()
    assert locked.remote.read_text("lock") == this_process()
    said: list[str] = []
    with pytest.raises(RunDirError, match=rf"{locked.remote.url} is in use by process {os.getpid()} on ") as caught:
        second.take(said.append)
    assert "--experiment_name" in caught.value.hint and "looking for up to" in said[0]
    assert not first.lost.is_set()
    second.release()
    assert locked.remote.exists("lock")
    first.release()
    assert not locked.remote.exists("lock")
    second.take()
    second.release()


def test_a_driver_of_another_host_that_is_gone(run: RunDir, remote: Remote, fast: None) -> None:
    remote.write_text("lock", "another-host 1 1\n")
    start, said, lock = time.monotonic(), [], RemoteLock(run)
    lock.take(said.append)
    assert 1.5 <= time.monotonic() - start < 15 and "process 1 on another-host" in said[0]
    assert remote.read_text("lock") == this_process()
    lock.release()


def test_a_driver_of_another_host_that_lives(run: RunDir, remote: Remote, fast: None) -> None:
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            remote.write_text("lock", "another-host 1 1\n")

    remote.write_text("lock", "another-host 1 1\n")
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunDirError, match="in use by process 1 on another-host"):
            RemoteLock(run).take()
    finally:
        ended.set()
        thread.join()


def test_a_driver_that_releases_while_it_is_watched(run: RunDir, remote: Remote, fast: None) -> None:
    remote.write_text("lock", "another-host 1 1\n")
    lock = RemoteLock(run)
    threading.Timer(0.1, lambda: remote.delete("lock")).start()
    lock.take()
    assert remote.read_text("lock") == this_process()
    lock.release()


def test_a_driver_that_died_on_this_host_is_not_waited_for(run: RunDir, remote: Remote) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = this_process().split()[0]
    remote.write_text("lock", f"{host} {ended.pid} 1\n")
    start, said, lock = time.monotonic(), [], RemoteLock(run)
    lock.take(said.append)
    assert time.monotonic() - start < 10 and said == []
    lock.release()


def test_two_that_find_a_stale_lock_at_once(run: RunDir, remote: Remote, fast: None) -> None:
    remote.write_text("lock", "another-host 1 1\n")
    locks = [RemoteLock(run), RemoteLock(run)]
    for number, lock in enumerate(locks):
        lock.mine = f"host-{number} 1 1\n"
    refused = []

    def take(lock: RemoteLock) -> None:
        try:
            lock.take()
        except RunDirError:
            refused.append(lock)

    threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [lock for lock in locks if lock not in refused]
    assert remote.read_text("lock") == winner.mine
    winner.release()


def test_a_driver_that_slept_too_long_hears_of_it(run: RunDir, remote: Remote, fast: None) -> None:
    lock = RemoteLock(run)
    lock.take()
    remote.write_text("lock", "another-host 1 1\n")
    assert lock.lost.wait(10)
    lock.release()
    assert remote.read_text("lock") == "another-host 1 1\n"


def test_a_storage_that_is_away_for_a_while_costs_no_lock(
    run: RunDir, remote: Remote, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = RemoteLock(run)
    lock.take()
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "read_text", fail)
        time.sleep(0.3)
    version = remote.version("lock")
    wait_until(lambda: remote.version("lock") != version)
    assert not lock.lost.is_set()
    lock.release()
    assert not remote.exists("lock")


def test_what_was_taken_over_a_moment_ago_is_not_released(run: RunDir, remote: Remote) -> None:
    """Between two beats."""
    lock = RemoteLock(run)
    lock.take()
    remote.write_text("lock", "another-host 1 1\n")
    lock.release()
    assert not lock.lost.is_set() and remote.read_text("lock") == "another-host 1 1\n"


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_pushed_any_more_once_the_run_is_another_drivers(run: RunDir, remote: Remote, fails: bool) -> None:
    write(run, spec_json="mine")
    lost, error = threading.Event(), KeyError()
    try:
        with pushing(run, print, seconds=0.01, lost=lost):
            lost.set()
            remote.write_text("spec.json", "the other's")
            write(run, spec_json="mine", metrics="mine")
            time.sleep(0.1)
            if fails:
                raise error
    except KeyError as raised:
        assert raised is error
    assert remote.read_text("spec.json") == "the other's" and not remote.exists("metrics.jsonl")


def test_an_unwritable_place_refuses_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="Not a directory"):
        RemoteLock(RunDir.of(spec_of(f"file://{tmp_path}/file"), "")).take()


# Prepared rows


def prepared(home: Path, name: str = "0123abcd") -> Path:
    place = home / "_prepared" / name
    place.mkdir(parents=True)
    (place / "train.arrow").write_bytes(bytes(1000))
    (place / "validation.arrow").write_bytes(bytes(10))
    manifest = {"hash": name, "files": {"train.arrow": 1000, "validation.arrow": 10}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def test_rows_to_another_machine(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "driver"))
    here = prepared(storage_root(s3))
    names = uploads(monkeypatch)
    share_rows(here, s3)
    assert sorted(names[:2]) == ["train.arrow", "validation.arrow"] and names[2:] == ["manifest.json"]
    share_rows(here, s3)
    assert len(names) == 3
    assert fetch_rows(here.name, s3) == here
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "worker"))
    there = fetch_rows(here.name, s3)
    assert there == storage_root(s3) / "_prepared" / here.name != here
    assert sorted(path.name for path in there.iterdir()) == sorted(path.name for path in here.iterdir())
    assert [path.name for path in there.parent.iterdir() if path.name.endswith(".tmp")] == []


def test_rows_that_are_half_uploaded_are_uploaded_again(storage: str) -> None:
    here, remote = prepared(storage_root(storage)), Remote.of(storage, "_prepared", "0123abcd")
    assert remote is not None
    remote.write_text("train.arrow", "half")
    share_rows(here, storage)
    assert len(remote.read("train.arrow") or b"") == 1000 and remote.exists("manifest.json")


def test_rows_that_are_nowhere_or_damaged(storage: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no _prepared/0123"):
        fetch_rows("0123", storage)
    with pytest.raises(StorageError, match="holds no _prepared/0123"):
        fetch_rows("0123", tmp_path)
    remote = Remote.of(storage, "_prepared", "0123")
    assert remote is not None
    remote.write_text("manifest.json", '{"files": {"train.arrow": 5}}')
    with pytest.raises(StorageError, match="this directory is damaged"):
        fetch_rows("0123", storage)


def test_damaged_rows_of_this_machine_are_fetched_again(storage: str) -> None:
    here = prepared(storage_root(storage))
    share_rows(here, storage)
    (here / "train.arrow").write_bytes(b"half")
    (here.parent / f".{here.name}.12345678.tmp").mkdir()
    assert fetch_rows(here.name, storage) == here
    assert (here / "train.arrow").stat().st_size == 1000
    assert not list(here.parent.glob(".*.tmp"))


def _fetch(name: str, storage: str, count: Any) -> None:
    real = Remote.download

    def download(self: Remote, name: str, local: Path) -> None:
        with count.get_lock():
            count.value += 1
        time.sleep(0.5)
        real(self, name, local)

    Remote.download = download  # type: ignore[method-assign]
    assert (fetch_rows(name, storage) / "manifest.json").exists()


def test_all_processes_of_a_machine_ask_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = f"file://{tmp_path}/there"
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "driver"))
    share_rows(prepared(storage_root(storage)), storage)
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "worker"))
    fork = multiprocessing.get_context("fork")
    count = fork.Value("i", 0)
    workers = [fork.Process(target=_fetch, args=("0123abcd", storage, count)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4 and count.value == 1

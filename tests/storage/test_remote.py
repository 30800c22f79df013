"""Files at a URI: whole or not there, the same from threads and other processes, and refusals in plain words."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raymb.errors import RunDirError, SpecError, StorageError
from raymb.run.directory import RunDir
from raymb.spec import load_spec, spec_from_json, spec_to_json
from raymb.storage import remote as remote_module
from raymb.storage import transfer
from raymb.storage.remote import Remote, check_writable, storage_root

KINDS = ["memory", "file", "s3"]


@pytest.fixture(params=KINDS)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/prefix"
    return {"memory": f"memory://{uuid.uuid4().hex}", "file": f"file://{tmp_path}/there"}[request.param]


@pytest.fixture
def place(uri: str) -> Remote:
    place = Remote.of(uri)
    assert place is not None
    return place


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_PAUSES", (0.0, 0.0))


def tree(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def write_tree(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


# URIs


def test_a_directory_stands_for_a_storage_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", "/home/somebody")
    assert storage_root("~/runs") == Path("/home/somebody/runs")
    assert storage_root("runs") == Path.cwd() / "runs"
    workspace = storage_root("s3://bucket/prefix")
    assert workspace.parent == tmp_path / "cache" / "storage" and len(workspace.name) == 16
    assert workspace == storage_root("s3://bucket/prefix/") != storage_root("s3://bucket/other")
    assert not workspace.exists()


def test_remote_of_a_storage_path() -> None:
    assert Remote.of("runs", "one") is None and Remote.of(Path("/runs")) is None
    assert Remote.of("s3://bucket/prefix/", "one", "two") == Remote("s3://bucket/prefix/one/two")
    assert Remote("s3://bucket").child("a").child("b/c/").child("") == Remote("s3://bucket/a/b/c")


def test_a_spec_keeps_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMB_CACHE", str(tmp_path))
    flags = {"hf_model_path": "owner/name", "experiment_name": "one"}
    spec = load_spec({**flags, "storage_path": "s3://bucket/prefix"})
    assert spec_from_json(spec_to_json(spec)).run.storage_path == spec.run.storage_path == "s3://bucket/prefix"
    (tmp_path / "spec.json").write_text(spec_to_json(spec))
    assert load_spec({}, [tmp_path / "spec.json"]) == spec
    run = RunDir.of(spec, "")
    assert run.remote == Remote("s3://bucket/prefix/one")
    assert run.path == storage_root("s3://bucket/prefix") / "one" and run.checkpoints == run.path / "checkpoints"
    assert RunDir.of(load_spec({**flags, "storage_path": Path("runs")}), "").remote is None


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("storage_path", "s3://", "names no bucket"),
        ("storage_path", "s3://key:sesame@bucket/prefix", "a password or token in the URI would be stored"),
        ("storage_path", "", "must not be empty"),
        ("output_dir", "s3://bucket/prefix", "must be a directory; --storage_path takes a URI"),
    ],
)
def test_uris_that_are_refused(flag: str, value: str, words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        load_spec({"hf_model_path": "owner/name", flag: value})
    assert f"--{flag}" in str(caught.value) and "sesame" not in str(caught.value)


# Files and trees


def test_texts(place: Remote) -> None:
    assert place.read_text("a/b.txt") is None and not place.exists("a/b.txt") and place.listing("a") == []
    place.write_text("a/b.txt", "one\n")
    place.write_text("a/b.txt", "two\n")
    assert place.read_text("a/b.txt") == "two\n"
    assert place.child("a").read("b.txt") == b"two\n"
    assert place.exists("a/b.txt") and place.exists("a") and place.read("a") is None
    assert place.version("a/b.txt") == place.version("a/b.txt") != place.version("a") and place.version("none") is None
    place.write_text("a/c/d.txt", "")
    place.write_text("e.txt", "")
    assert place.listing() == ["a", "e.txt"] and place.listing("a") == ["b.txt", "c"] and place.listing("a/b.txt") == []
    place.delete("a/b.txt")
    place.delete("a/b.txt")
    assert place.listing("a") == ["c"]
    place.delete("a")
    assert place.listing("a") == [] and not place.exists("a/c/d.txt") and place.exists("e.txt")


def test_create_only_once(place: Remote) -> None:
    assert place.create_text("lock", "one")
    assert not place.create_text("lock", "two")
    assert place.read_text("lock") == "one"


def test_what_others_write_is_seen_at_once(place: Remote) -> None:
    """fsspec would answer from listings that it has kept."""
    place.write_text("a/one", "1")
    assert place.listing("a") == ["one"] and not place.exists("a/two")
    filesystem, path = fsspec.url_to_fs(f"{place.url}/a/two", skip_instance_cache=True)
    filesystem.pipe_file(path, b"2")
    assert place.listing("a") == ["one", "two"] and place.read_text("a/two") == "2"


def test_a_tree_to_and_fro(place: Remote, tmp_path: Path) -> None:
    files = {"top.txt": b"a" * 10, "deep/er/file.bin": bytes(range(256)) * 300, "empty": b""}
    there = write_tree(tmp_path / "up", {**files, ".left.12345678.tmp": b"of a killed process"})
    place.upload(there, "tree")
    place.upload(there / "top.txt", "single.txt")
    assert place.listing("tree") == ["deep", "empty", "top.txt"]
    back = write_tree(tmp_path / "back", {"old.txt": b"goes"})
    place.download("tree", back)
    assert tree(back) == files
    place.download("tree", tmp_path / "new" / "place")
    assert tree(tmp_path / "new" / "place") == files
    place.download("single.txt", back / "top.txt")
    place.download("single.txt", tmp_path / "other" / "name.txt")
    assert (tmp_path / "other" / "name.txt").read_bytes() == files["top.txt"]
    assert not list(tmp_path.glob("**/.*.tmp")) or list(tmp_path.glob("**/.*.tmp")) == [there / ".left.12345678.tmp"]


def test_fetch_missing_takes_what_is_not_here_or_is_not_as_long(place: Remote, tmp_path: Path) -> None:
    files = {f"shard-{number}": bytes(number + 1) for number in range(9)} | {"deep/one": b"12345"}
    place.upload(write_tree(tmp_path / "up", files), "step")
    here = write_tree(tmp_path / "here", {"shard-3": b"same"[:4], "shard-4": b"longer than it", "more": b"mine"})
    sizes = {name: len(content) for name, content in files.items()}
    fetched = place.fetch_missing("step", here, sizes)
    assert sorted(fetched) == sorted(set(files) - {"shard-3"})
    assert tree(here) == {**files, "shard-3": b"same", "more": b"mine"}
    assert place.fetch_missing("step", here, sizes) == []
    with pytest.raises(StorageError, match=r"step/shard-0: cannot be read \(1 bytes arrived of 7\)"):
        place.fetch_missing("step", here, {"shard-0": 7})
    with pytest.raises(StorageError, match="step/none: cannot be read"):
        place.fetch_missing("step", here, {"none": 7})
    assert sorted(tree(here)) == sorted([*files, "more"])


def test_a_failed_download_leaves_the_old_file(place: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(StorageError, match="cannot be read") as caught:
        place.download("none", tmp_path / "file")
    assert f"--storage_path {place.url}/none" in caught.value.message
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name != "there"] == ["file"]


def test_a_download_that_breaks_off_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    place = Remote(f"memory://{uuid.uuid4().hex}")
    place.write_text("file", "whole")
    breaks, real = [1, 2], MemoryFileSystem.get_file

    def get_file(self: Any, path: str, local: str, **options: Any) -> None:
        Path(local).write_text("par")
        if breaks:
            raise ConnectionError(f"broken pipe {breaks.pop()}")
        real(self, path, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", get_file)
    place.download("file", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole"
    breaks += [1, 2, 3]
    with pytest.raises(StorageError, match="broken pipe 1"):
        place.download("file", tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_upload_that_breaks_off_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    place = Remote(f"file://{tmp_path}/there")
    place.write_text("file", "old")
    (tmp_path / "new").write_text("new")

    def put_file(self: Any, local: str, path: str, **options: Any) -> None:
        Path(path).write_text("n")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    with pytest.raises(StorageError, match=r"there/file: cannot be written \(No space left on device"):
        place.upload(tmp_path / "new", "file")
    assert place.read_text("file") == "old" and [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


def test_large_files_travel_in_parts(s3: str, tmp_path: Path) -> None:
    content = b"0123456789abcdef" * (7 << 20)  # 112 MB: s3fs uploads more than 100 MB in parts
    (tmp_path / "large").write_bytes(content)
    place = Remote(f"{s3}/run")
    place.upload(tmp_path / "large", "large")
    assert place.fetch_missing("", tmp_path / "back", {"large": len(content)}) == ["large"]
    assert (tmp_path / "back" / "large").read_bytes() == content


def test_s3_folders_made_by_a_console_are_no_files(s3: str, tmp_path: Path) -> None:
    place = Remote(f"{s3}/run")
    place.write_text("tree/a", "1")
    for folder in ("tree/", "tree/sub/"):
        filesystem, _ = fsspec.url_to_fs(s3)
        filesystem.call_s3("put_object", Bucket=s3.removeprefix("s3://"), Key=f"run/{folder}", Body=b"")
    assert place.listing("tree") == ["a", "sub"]
    place.download("tree", tmp_path / "back")
    assert tree(tmp_path / "back") == {"a": b"1"}
    place.delete("tree")
    assert place.listing("tree") == []


# Threads and processes


def test_many_threads(place: Remote) -> None:
    def write_and_read(number: int) -> bool:
        place.write_text(f"{number}", str(number))
        return place.read_text(f"{number}") == str(number) and str(number) in place.listing()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(32)))
    assert len(place.listing()) == 32


def _answer(place: Remote) -> None:
    place.write_text("answer", place.read_text("question") or "nothing")


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("uri", ["file", "s3"], indirect=True)
def test_other_processes(place: Remote, method: str) -> None:
    """Also one that is forked while a connection is open, and afterwards this one again."""
    place.write_text("question", "42")
    assert pickle.loads(pickle.dumps(place)) == place
    for _ in range(2):
        child = multiprocessing.get_context(method).Process(target=_answer, args=(place,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert place.read_text("answer") == "42"
        place.delete("answer")


def test_forking_while_other_threads_are_busy(s3: str) -> None:
    place, done = Remote(f"{s3}/run"), threading.Event()
    place.write_text("question", "42")

    def keep_busy() -> None:
        while not done.is_set():
            place.read_text("question")

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        child = multiprocessing.get_context("fork").Process(target=_answer, args=(place,))
        child.start()
        child.join(60)
    finally:
        done.set()
        busy.join()
    assert child.exitcode == 0 and place.read_text("answer") == "42"


# Before a run


def test_check_leaves_nothing(uri: str) -> None:
    check_writable(uri)
    place = Remote.of(uri)
    assert place is not None and place.listing() == []


def test_a_directory_is_not_checked(tmp_path: Path) -> None:
    check_writable(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def refused(uri: str) -> RunDirError:
    start = time.monotonic()
    with pytest.raises(RunDirError) as caught:
        check_writable(uri)
    assert time.monotonic() - start < 16
    assert f"--storage_path {uri}: " in caught.value.message and "--storage_path" in caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def test_no_such_bucket(s3: str) -> None:
    assert "cannot be written (The specified bucket does not exist" in refused("s3://no-such-bucket/prefix").message


def test_no_credentials(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    error = refused(s3)
    assert "Unable to locate credentials" in error.message and "AWS_ACCESS_KEY_ID" in error.hint


def test_nobody_listens(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    message = refused(s3).message
    assert "Could not connect to the endpoint URL" in message and "sesame" not in message


def test_an_endpoint_that_never_answers(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be written (no answer within 7.5 s)" in refused(s3).message


def test_a_server_that_stops_answering_holds_nobody_for_ever(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A PUT asks whether to continue, and aiohttp waits for the answer without a limit."""
    from s3fs import S3FileSystem

    monkeypatch.setattr(transfer, "_SECONDS_FOR_AN_ANSWER", 0.5)
    place = Remote(f"{s3}/run")
    place.write_text("file", "old")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        S3FileSystem.clear_instance_cache()  # which knows the server that answers
        (tmp_path / "file").write_text("new")
        for action in (
            lambda: place.write_text("file", "new"),
            lambda: place.upload(tmp_path / "file", "file"),
            lambda: place.read("file"),
            lambda: place.download("file", tmp_path / "back"),
            lambda: place.delete("file"),
        ):
            with pytest.raises(StorageError, match=r"file: cannot be .* \(no answer within 0.5 s\)"):
                action()


def test_a_back_end_that_keeps_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(remote_module, "_SECONDS_FOR_THE_CHECK", 0.2)
    monkeypatch.setattr(remote_module, "_connect", lambda *words, **options: ended.wait(30))
    assert "no answer within 0.2 s" in refused("memory://slow").message
    ended.set()


def test_denied(s3_server: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    async def deny(self: Any, *words: Any, **options: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(S3FileSystem, "_rm_file", deny)
    assert "cannot be deleted (Access Denied)" in refused(s3).message


@pytest.mark.parametrize(
    ("uri", "reason"),
    [("nonsense://bucket", "Protocol not known: nonsense"), ("gs://bucket", "gcsfs")],
)
def test_back_ends_that_are_not_there(uri: str, reason: str) -> None:
    assert reason in refused(uri).message


def test_a_file_uri_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in refused(f"file://{tmp_path}/file/runs").message


def test_errors_during_a_run_are_no_user_errors(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Remote("s3://no-such-bucket/run")
    with pytest.raises(StorageError, match=r"no-such-bucket/run/file: cannot be written \(The specified") as caught:
        place.write_text("file", "")
    assert caught.value.exit_code == 1 and "--storage_path" in caught.value.message


@pytest.fixture(scope="module", autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()

"""Checkpoints on S3 of a run whose machines have workspaces of their own: what counts, is fetched, and goes."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.s3 import s3_environment

from raymb.checkpoints.fetching import fetch_what_is_read
from raymb.checkpoints.manifest import (
    MANIFEST,
    best_of,
    describe_files,
    iteration_dir,
    latest_of,
    read_manifest,
    reshaped,
    steps_of,
    write_manifest,
)
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.errors import StorageError
from raymb.run.directory import REJECTED
from raymb.storage.remote import Remote

PROGRAM, SOURCES = Path(__file__).with_name("machine_ranks.py"), Path(__file__).parents[2] / "src"
RANKS = 2


class Run:
    """A run at a URI: machine 0 has written what its own rank has, as machine 1."""

    def __init__(self, uri: str, home: Path, ranks: Callable[..., list[dict[str, Any]]]):
        self.uri, self.home, self.ranks = f"{uri}/run", home, ranks
        self.machines = [RemoteCheckpoints(Remote(self.uri), home / str(rank) / "run") for rank in range(RANKS)]
        self.there = Remote(self.uri)

    def checkpoints(self, rank: int = 0) -> Path:
        return self.home / str(rank) / "run" / "checkpoints"

    def save(self, step: int, content: str = "", home: str = "", **state: Any) -> None:
        """As the ranks do: each uploads its part, rank 0 the rest and the manifest."""
        files: dict[str, Any] = {}
        for rank, machine in enumerate(self.machines):
            directory = Path(iteration_dir(self.checkpoints(rank) / home, step))
            directory.mkdir(parents=True, exist_ok=True)
            part = directory / f"__{rank}_0.distcp"
            part.write_text(f"{content or step} of rank {rank}")
            files |= describe_files([part])
            machine.upload([part])
        directory = Path(iteration_dir(self.checkpoints() / home, step))
        small = [directory / name for name in (".metadata", "common.pt")]
        for file in small:
            file.write_text(f"{content or step} {file.name}")
        write_manifest(directory, {**files, **describe_files(small)}, {"step": step, **state})
        self.machines[0].finish(directory, list(files))

    def lose(self) -> None:
        """All machines are gone, and come back empty."""
        for rank in range(RANKS):
            shutil.rmtree(self.home / str(rank), ignore_errors=True)

    def resume(self) -> list[dict[str, Any]]:
        """What each of two ranks on two machines found."""
        return self.ranks({"uri": self.uri, "home": str(self.home)})


@pytest.fixture(scope="module")
def ranks(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Gives two ranks a task, and returns their answers."""
    tasks, counter = tmp_path_factory.mktemp("tasks"), itertools.count()
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", RANKS, PROGRAM, tasks]
    environment = {**os.environ, **s3_environment(s3_server), "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *map(str, words)], stderr=subprocess.PIPE, text=True, env=environment)

    def ask(task: dict[str, Any]) -> list[dict[str, Any]]:
        number = next(counter)
        (tasks / f".{number}").write_text(json.dumps(task))
        (tasks / f".{number}").rename(tasks / f"{number}.json")
        answers = [tasks / f"{number}-{rank}.json" for rank in range(RANKS)]
        while not all(answer.exists() for answer in answers):
            assert process.poll() is None, process.stderr and process.stderr.read()[-3000:]
            time.sleep(0.05)
        return [json.loads(answer.read_text()) for answer in answers]

    yield ask
    (tasks / "end").touch()
    process.communicate(timeout=60)


@pytest.fixture
def run(s3: str, tmp_path: Path, ranks: Callable[..., list[dict[str, Any]]]) -> Run:
    return Run(s3, tmp_path, ranks)


NEWEST = "checkpoints/iter_0000020"
WHOLE = [".metadata", "__0_0.distcp", "__1_0.distcp", "common.pt", MANIFEST]


def test_what_is_whole_is_decided_at_the_uri(run: Run) -> None:
    """No machine has more than its own ranks' parts: rank 0, which looked at its own disk, found nothing whole."""
    for step, metric in ((10, 1.0), (20, 2.0), (30, None)):
        run.save(step, metric=metric)
    (run.checkpoints() / "iter_0000040").mkdir()
    assert not Path(iteration_dir(run.checkpoints(), 10), "__1_0.distcp").exists()
    for machine, checkpoints in ((run.machines[rank], run.checkpoints(rank)) for rank in range(RANKS)):
        found = machine.whole(checkpoints)
        assert (sorted(found), latest_of(found), best_of(found)) == ([10, 20, 30], 30, 10)
        assert machine.latest_step(checkpoints) == 30
    run.there.delete(f"checkpoints/iter_0000030/{MANIFEST}")
    again = RemoteCheckpoints(run.there, run.home / "0" / "run")
    assert (again.latest_step(run.checkpoints()), latest_of(again.whole(run.checkpoints()))) == (20, 20)


def test_old_ones_are_deleted_there_and_on_every_machine(run: Run) -> None:
    for step, metric in ((10, 1.0), (20, 3.0), (30, 2.0)):
        run.save(step, metric=metric)
    run.save(10, home="reshaped", any_layout=True)
    machine, home = run.machines[0], run.checkpoints()
    run.there.write_text("checkpoints/iter_0000015/__1_0.distcp", "nobody will finish it")
    assert machine.delete_old(home, None, None) == []
    assert not run.there.listing("checkpoints/reshaped") and not reshaped(home).joinpath("iter_0000010").exists()
    assert machine.delete_old(home, 1, 1, in_use={20}) == [15]
    assert machine.delete_old(home, 1, 1) == [20]
    assert run.there.listing("checkpoints") == ["iter_0000010", "iter_0000030"]
    assert steps_of(home) == [30, 10] and steps_of(run.checkpoints(1)) == [30, 20, 10]
    run.machines[1].forget_old(run.checkpoints(1), 30)
    assert steps_of(run.checkpoints(1)) == [30, 10]


def test_each_machine_fetches_its_share_and_what_it_reads(run: Run) -> None:
    run.save(10)
    run.save(20)
    run.lose()
    first, second = run.resume()
    assert [first["found"], second["found"]] == [NEWEST] * 2 and first["said"] == second["said"] == []
    assert first["first"] == [name for name in WHOLE if name != "__1_0.distcp"]
    assert second["first"] == [name for name in WHOLE if name != "__0_0.distcp"]
    assert first["read"] == WHOLE and second["read"] == second["first"]
    assert first["content"] == ["20 of rank 0", "20 of rank 1"] and second["content"] == ["20 of rank 1"]


def test_a_shard_that_an_earlier_run_left_is_not_taken_for_the_new_one(run: Run) -> None:
    """Of the same name and size, on a machine that has no manifest."""
    run.save(20, content="older one")
    older = {rank: (run.checkpoints(rank) / "iter_0000020" / f"__{rank}_0.distcp").read_text() for rank in range(RANKS)}
    run.save(20, content="newer one")
    for rank, text in older.items():
        (run.checkpoints(rank) / "iter_0000020" / f"__{rank}_0.distcp").write_text(text)
    first, second = run.resume()
    assert first["found"] == NEWEST and first["said"] == []
    assert first["content"] == ["newer one of rank 0", "newer one of rank 1"]
    assert second["content"] == ["newer one of rank 1"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("flipped", "__1_0.distcp has another checksum"),
        ("truncated", "bytes arrived of 12"),
        ("missing", "__1_0.distcp: cannot be read"),
    ],
)
def test_a_damaged_one_at_the_uri_is_left_out_once(run: Run, damage: str, problem: str) -> None:
    """Found by the machine that has the part, and known to both."""
    run.save(10)
    run.save(20)
    run.lose()
    part = "checkpoints/iter_0000020/__1_0.distcp"
    if damage == "missing":
        run.there.delete(part)
    else:
        run.there.write_text(part, "20 of rank X" if damage == "flipped" else "20 of")
    answers = run.resume()
    assert [answer["found"] for answer in answers] == ["checkpoints/iter_0000010"] * 2
    (said,) = answers[0]["said"]
    assert "iter_0000020 is not whole and is left out: " in said and problem in said and answers[1]["said"] == []
    assert run.there.listing("checkpoints/iter_0000020").count(REJECTED) == 1
    assert not run.there.exists(f"checkpoints/iter_0000020/{MANIFEST}")
    again = run.resume()
    assert [answer["found"] for answer in again] == ["checkpoints/iter_0000010"] * 2 and again[0]["said"] == []
    run.save(15)
    assert run.machines[0].delete_old(run.checkpoints(), 1, None) == [10], "the one just saved stays"
    run.save(20)
    assert run.resume()[0]["found"] == NEWEST


def test_one_machine_can_have_all_of_it(run: Run) -> None:
    """To export it."""
    run.save(10)
    directory = iteration_dir(run.checkpoints(), 10)
    run.machines[0].fetch_here(directory)
    assert sorted(path.name for path in Path(directory).iterdir()) == WHOLE
    assert (read_manifest(directory) or {})["step"] == 10
    run.there.write_text("checkpoints/iter_0000010/__1_0.distcp", "10 of rank X")
    shutil.rmtree(directory)
    fresh = RemoteCheckpoints(run.there, run.home / "0" / "run")
    with pytest.raises(StorageError, match=r"iter_0000010 is not whole: __1_0\.distcp has another"):
        fresh.fetch_here(directory)


def test_torchs_own_reader_reads_what_is_not_here_and_no_other_file(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

    monkeypatch.setattr(FileSystemReader, "read_data", FileSystemReader.read_data)  # is put back at the end
    remote = RemoteCheckpoints(Remote(f"{s3}/run"), tmp_path / "run")
    directory = Path(iteration_dir(tmp_path / "run" / "checkpoints", 10))
    state = {name: torch.full((1000,), float(number)) for number, name in enumerate(("weight", "exp_avg"))}
    dcp.save(state, storage_writer=FileSystemWriter(directory, thread_count=2), no_dist=True)
    parts = sorted(path.name for path in directory.glob("__*"))
    assert len(parts) == 2
    write_manifest(directory, describe_files(directory.iterdir()), {"step": 10})
    remote.finish(directory, [])
    shutil.rmtree(directory)
    remote.begin(str(directory))
    files = (read_manifest(directory) or {})["files"]
    assert remote.have(str(directory), {".metadata": files[".metadata"]}) == ""
    fetch_what_is_read(remote)
    wanted = {"exp_avg": torch.zeros(1000)}
    dcp.load(wanted, storage_reader=FileSystemReader(directory), no_dist=True)
    assert torch.equal(wanted["exp_avg"], state["exp_avg"])
    assert len(list(directory.glob("__*"))) == 1, "the other tensor's file is not read"
    for part in parts:
        remote.remote.write_text(f"checkpoints/iter_0000010/{part}", "x" * files[part]["bytes"])
    with pytest.raises(CheckpointException, match="has another checksum"):
        dcp.load({"weight": torch.zeros(1000)}, storage_reader=FileSystemReader(directory), no_dist=True)

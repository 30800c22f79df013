"""Where ranks resume, agreed between them: one rank in this process, and two of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from raymb.checkpoints.manifest import (
    MANIFEST,
    best_step,
    delete_old,
    describe_files,
    iteration_dir,
    latest_step,
    reshaped,
    write_manifest,
)
from raymb.checkpoints.resuming import where_to_resume
from raymb.errors import RaymbError
from raymb.run.directory import REJECTED

PROGRAM, SOURCES = Path(__file__).with_name("resuming_ranks.py"), Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _write(checkpoint_dir: Path, step: int, whole: bool = True) -> Path:
    directory = Path(iteration_dir(checkpoint_dir, step))
    directory.mkdir(parents=True)
    for rank in range(5):
        (directory / f"__{rank}_0.distcp").write_bytes(bytes([rank] * 20))
    if whole:
        write_manifest(directory, describe_files(directory.iterdir()), {"step": step})
    return directory


def _flip(directory: Path, rank: int = 4) -> None:
    (directory / f"__{rank}_0.distcp").write_bytes(bytes([99] * 20))


def _found(checkpoint_dir: Path, resume: str) -> tuple[str | None, list[str]]:
    said: list[dict[str, Any]] = []
    found = where_to_resume(str(checkpoint_dir), resume, said.append)
    assert {record["kind"] for record in said} <= {"warning"}
    return found, [record["text"] for record in said]


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_run_without_a_checkpoint_begins_at_the_beginning(one_rank: None, tmp_path: Path, resume: str) -> None:
    assert _found(tmp_path, resume) == (None, [])


def test_what_is_not_whole_is_named_and_left_out(one_rank: None, tmp_path: Path) -> None:
    good, truncated, flipped, unfinished = (_write(tmp_path, step, whole=step != 40) for step in (10, 20, 30, 40))
    os.truncate(truncated / "__1_0.distcp", 5)
    _flip(flipped)
    found, said = _found(tmp_path, "auto")
    assert found == str(good)
    assert said == [
        f"{unfinished} is not whole and is left out: no manifest.json, which is written last",
        f"{flipped} is not whole and is left out: __4_0.distcp has another checksum",
        f"{truncated} is not whole and is left out: __1_0.distcp has 5 bytes, should have 20",
    ]
    _flip(good)
    assert _found(tmp_path, "auto")[0] is None


def test_what_was_left_out_is_said_once_and_does_not_count_as_the_newest(one_rank: None, tmp_path: Path) -> None:
    """--keep_last 1 deleted the checkpoint that was just saved for a damaged one of a later step."""
    good, unfinished, flipped = (_write(tmp_path, step, whole=step != 20) for step in (10, 20, 30))
    _flip(flipped)
    before = (flipped / MANIFEST).read_bytes()
    found, said = _found(tmp_path, "auto")
    assert (found, len(said)) == (str(good), 2)
    assert _found(tmp_path, "auto") == (str(good), [])
    assert (latest_step(tmp_path), best_step(tmp_path)) == (10, None)
    saved = _write(tmp_path, 15)
    assert delete_old(tmp_path, 1, None) == [10]
    assert _found(tmp_path, "auto") == (str(saved), [])
    assert not (flipped / MANIFEST).exists() and (flipped / REJECTED).read_bytes() == before
    assert json.loads((unfinished / REJECTED).read_text()) == {"problem": "no manifest.json, which is written last"}
    _write(tmp_path, 40)
    assert delete_old(tmp_path, 1, None) == [30, 20, 15], "what is set aside goes with the old ones"


def test_checkpoints_of_another_run_are_left_out_and_not_touched(one_rank: None, tmp_path: Path) -> None:
    other = tmp_path / "other"
    good, flipped = _write(other, 10), _write(other, 20)
    _flip(flipped)
    before = sorted(path.name for path in flipped.iterdir())
    for _ in range(2):
        found, said = _found(tmp_path / "own", str(other))
        assert (found, len(said)) == (str(good), 1)
    assert sorted(path.name for path in flipped.iterdir()) == before


def test_the_step_that_is_being_published_stays_whatever_else_is_there(tmp_path: Path) -> None:
    """Also where a damaged one could not be set aside, on storage that cannot be written for a moment."""
    for step in (10, 15, 20):
        _write(tmp_path, step)
    assert delete_old(tmp_path, 1, None, in_use={15}) == [10]


def test_the_runs_own_checkpoint_comes_first(one_rank: None, tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    theirs = [_write(other, step) for step in (50, 60)]
    assert _found(own, str(other)) == (str(theirs[1]), [])
    assert _found(own, str(theirs[0])) == (str(theirs[0]), [])
    mine = _write(own, 5)
    for resume in ("auto", "never", str(other)):  # a restarted worker group of a run that began with --resume never
        assert _found(own, resume) == (str(mine), [])
    _flip(mine)
    assert _found(own, str(other))[0] == str(theirs[1])


def test_a_reshaped_one_comes_before_its_original_and_behind_newer_ones(one_rank: None, tmp_path: Path) -> None:
    original, again = _write(tmp_path, 10), _write(reshaped(tmp_path), 10)
    assert _found(tmp_path, "auto")[0] == str(again)
    _flip(again)
    assert _found(tmp_path, "auto")[0] == str(original)
    newer = _write(tmp_path, 20)
    assert _found(tmp_path, "auto") == (str(newer), [])


def _two_ranks(checkpoint_dir: Path, out: Path) -> list[dict[str, Any]]:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, PROGRAM, checkpoint_dir, "auto", out]
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_share_the_reading_and_agree(tmp_path: Path) -> None:
    """The flipped byte is in a file that one of them reads; each file of the one that is taken is read once."""
    checkpoints = tmp_path / "checkpoints"
    good, flipped = _write(checkpoints, 10), _write(checkpoints, 20)
    _flip(flipped, 1)
    (_write(checkpoints, 30) / MANIFEST).unlink()
    answers = _two_ranks(checkpoints, tmp_path)
    assert [answer["found"] for answer in answers] == [str(good)] * 2
    assert len(answers[0]["said"]) == 2 and "__1_0.distcp has another checksum" in answers[0]["said"][1]
    assert answers[1]["said"] == [], "one rank speaks for all"
    assert [answer["left out"] for answer in answers] == [[[7], "JSONDecodeError"]] * 2, "one rank reads for all"
    mine, others = [[name for name in answer["read"] if name.startswith(good.name)] for answer in answers]
    assert (len(mine), len(others)) == (3, 2)
    assert sorted([*mine, *others]) == [f"{good.name}/__{rank}_0.distcp" for rank in range(5)]


@pytest.mark.parametrize("bridges_own", [True, False], ids=["without a manifest, as Bridge writes it", "damaged"])
def test_a_resume_path_that_cannot_be_used_is_refused(one_rank: None, tmp_path: Path, bridges_own: bool) -> None:
    """What a user set is honoured or refused."""
    other = _write(tmp_path / "other", 50, whole=not bridges_own)
    if not bridges_own:
        _flip(other)
    with pytest.raises(RaymbError):
        _found(tmp_path / "own", str(other))

"""Which checkpoint counts, which ones a run may resume from, and which ones are deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.manifest import (
    BEST,
    KEEP_BEST,
    KEEP_LAST,
    LATEST,
    MANIFEST,
    best_step,
    candidates,
    delete_old,
    describe_files,
    iteration_dir,
    latest_step,
    leave_out,
    left_out,
    losses_so_far,
    point,
    read_manifest,
    reshaped,
    steps_of,
    whole,
    why_not_whole,
    write_manifest,
    written_with,
    wrong_content,
)
from raymb.spec.sections import Checkpoint

FILES = {
    "__0_0.distcp": b"weights of rank 0",
    "__1_0.distcp": b"weights of rank 1",
    ".metadata": b"",
    "common.pt": b"c",
}


def _write(checkpoint_dir: Path, step: int, whole: bool = True, **state: Any) -> Path:
    directory = Path(iteration_dir(checkpoint_dir, step))
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    if whole:
        write_manifest(directory, describe_files(directory.iterdir()), {"step": step, **state})
    return directory


def _problem(directory: Path) -> str:
    return why_not_whole(directory) or wrong_content(directory)


# Whole or not


def test_files_are_described_by_name_size_and_checksum(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "empty").touch()
    assert describe_files(path for path in (tmp_path / "a", tmp_path / "empty")) == {
        "a": {"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        "empty": {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    }
    assert describe_files([]) == {}
    with pytest.raises(FileNotFoundError):
        describe_files([tmp_path / "missing"])


def test_a_manifest_comes_back_with_all_that_belongs_to_the_checkpoint(tmp_path: Path) -> None:
    losses = [[5, 1.25], [10, 1 / 3]]
    directory = _write(tmp_path, 10, metric=1 / 3, validation_losses=losses, layout={"tensor_parallel_size": 2})
    manifest = read_manifest(directory)
    assert manifest is not None and sorted(manifest["files"]) == sorted(FILES)
    state = {"step": 10, "metric": 1 / 3, "validation_losses": losses, "layout": {"tensor_parallel_size": 2}}
    assert {name: value for name, value in manifest.items() if name != "files"} == state
    assert losses_so_far(directory) == losses
    assert _problem(directory) == ""


def _truncate(directory: Path) -> None:
    os.truncate(directory / "__1_0.distcp", 5)


def _grow(directory: Path) -> None:
    with open(directory / ".metadata", "ab") as file:
        file.write(b"x")


def _flip(directory: Path) -> None:
    file = directory / "__1_0.distcp"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _swap(directory: Path) -> None:
    """Both have the right size."""
    first, second = directory / "__0_0.distcp", directory / "__1_0.distcp"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def _replace_by_directory(directory: Path) -> None:
    (directory / ".metadata").unlink()
    (directory / ".metadata").mkdir()


def _manifest(text: str | bytes) -> Callable[[Path], None]:
    return lambda directory: (
        (directory / MANIFEST).write_bytes(text.encode() if isinstance(text, str) else text) and None
    )


NO_MANIFEST = "no manifest.json, which is written last"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (_truncate, "__1_0.distcp has 5 bytes, should have 17"),
    "grown": (_grow, ".metadata has 1 bytes, should have 0"),
    "missing": (lambda directory: (directory / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
    "a directory instead": (_replace_by_directory, ".metadata is missing"),
    "no manifest": (lambda directory: (directory / MANIFEST).unlink(), NO_MANIFEST),
    "no directory": (shutil.rmtree, NO_MANIFEST),
    "empty manifest": (_manifest(""), NO_MANIFEST),
    "torn manifest": (_manifest('{"step": 10, "files": {"a": {"bytes": 1, "sh'), NO_MANIFEST),
    "binary manifest": (_manifest(b"\xff\xfe\x00"), NO_MANIFEST),
    "another object": (_manifest("[1, 2]"), NO_MANIFEST),
    "no files in it": (_manifest('{"step": 10}'), NO_MANIFEST),
    "files are a list": (_manifest('{"files": ["common.pt"]}'), NO_MANIFEST),
    "files without an entry": (_manifest('{"files": {"common.pt": 1}}'), NO_MANIFEST),
    "a flipped bit in a key": (_manifest('{"files": {"common.pt": {"bytew": 1, "sha256": ""}}}'), NO_MANIFEST),
    "no checksum": (_manifest('{"files": {"common.pt": {"bytes": 1}}}'), NO_MANIFEST),
    "a flipped byte": (_flip, ""),
    "swapped": (_swap, ""),
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_does_not_count(damage: Callable[[Path], Any], problem: str, tmp_path: Path) -> None:
    _write(tmp_path, 5)
    directory = _write(tmp_path, 10)
    assert latest_step(tmp_path) == 10
    damage(directory)
    assert why_not_whole(directory) == problem
    assert _problem(directory) != ""
    assert latest_step(tmp_path) == (5 if problem else 10), "names and sizes are looked at, not contents"


def test_a_flipped_byte_is_found_by_the_rank_whose_share_it_is(tmp_path: Path) -> None:
    directory = _write(tmp_path, 10)
    _flip(directory)
    assert wrong_content(directory) == "__1_0.distcp has another checksum"
    for shares in (1, 2, 3, 4, 9):
        found = [wrong_content(directory, share, shares) for share in range(shares)]
        assert sorted(found) == [*[""] * (shares - 1), "__1_0.distcp has another checksum"]


def test_a_file_that_cannot_be_read_is_a_problem_and_no_error(tmp_path: Path) -> None:
    """A bad block of a disk. A rank that raised would leave the others waiting for its answer."""
    directory = tmp_path / "iter_0000010"
    directory.mkdir()
    (directory / "bad").symlink_to("/proc/self/mem")  # its first page gives EIO
    write_manifest(directory, {"bad": {"bytes": 0, "sha256": "00"}}, {})
    assert why_not_whole(directory) == ""
    assert wrong_content(directory) == "bad cannot be read: Input/output error"
    (directory / "bad").unlink()
    assert wrong_content(directory) == "bad cannot be read: No such file or directory"


def test_files_that_the_manifest_does_not_name_do_not_matter(tmp_path: Path) -> None:
    directory = _write(tmp_path, 10)
    (directory / "notes.txt").write_text("mine")
    assert _problem(directory) == ""


def test_a_manifest_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = _write(tmp_path, 10, whole=False)

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(directory, describe_files(directory.iterdir()), {})
    assert why_not_whole(directory) == NO_MANIFEST


# Newest and best


def test_the_newest_whole_checkpoint_counts_whatever_the_pointer_says(tmp_path: Path) -> None:
    for step in (10, 20):
        _write(tmp_path, step)
    _write(tmp_path, 30, whole=False)
    point(tmp_path, LATEST, 10)
    assert latest_step(tmp_path) == 20
    assert steps_of(tmp_path) == [30, 20, 10]


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert (latest_step(directory), best_step(directory), steps_of(directory)) == (None, None, [])
        assert delete_old(directory, 1, 1) == []


@pytest.mark.parametrize("name", ["iter_20", "iter_0000020x", "xiter_0000020", "iter_", "latest", "iter_0000020.tmp"])
def test_what_is_no_iteration_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "iter_0000030").write_text("a file")
    assert steps_of(tmp_path) == [] and not checkpoint.is_iteration(tmp_path / name)


def test_more_than_seven_digits(tmp_path: Path) -> None:
    for step in (9999999, 12345678):
        _write(tmp_path, step)
    assert latest_step(tmp_path) == 12345678
    assert steps_of(tmp_path) == [12345678, 9999999]


@pytest.mark.parametrize("name", [LATEST, BEST])
def test_a_pointer_names_the_iteration_directory(tmp_path: Path, name: str) -> None:
    _write(tmp_path, 20)
    point(tmp_path, name, 20)
    assert (tmp_path / name).read_text() == "iter_0000020\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["iter_0000020", name])


def test_a_pointer_moves_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point(tmp_path, LATEST, 10)

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        point(tmp_path, LATEST, 20)
    assert (tmp_path / LATEST).read_text() == "iter_0000010\n"


def test_the_best_one_has_the_lowest_metric_and_is_the_later_of_two_that_are_equal(tmp_path: Path) -> None:
    for step, metric in {10: 2.0, 20: 1.0, 30: 1.0, 40: 1.5, 50: None}.items():
        _write(tmp_path, step, metric=metric)
    assert best_step(tmp_path) == 30
    (Path(iteration_dir(tmp_path, 30)) / "common.pt").unlink()
    assert best_step(tmp_path) == 20


@pytest.mark.parametrize("bad", [float("nan"), float("-inf"), float("inf"), "0.1"])
def test_a_metric_that_is_no_number_makes_no_best(tmp_path: Path, bad: Any) -> None:
    for step, metric in {10: 0.5, 20: 1.0, 30: bad}.items():
        _write(tmp_path, step, metric=metric)
    assert best_step(tmp_path) == 10
    assert delete_old(tmp_path, 1, 1) == [20]


def test_without_a_metric_there_is_no_best(tmp_path: Path) -> None:
    _write(tmp_path, 10)
    assert best_step(tmp_path) is None


# Where a run may resume


def test_candidates_are_the_newest_first_and_a_reshaped_one_before_its_original(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        _write(tmp_path, step, whole=step != 30)
    _write(reshaped(tmp_path), 20)
    expected = [
        tmp_path / "iter_0000030",
        tmp_path / "reshaped" / "iter_0000020",
        tmp_path / "iter_0000020",
        tmp_path / "iter_0000010",
    ]
    for resume in ("auto", "never"):  # a restarted worker group of a run that began with --resume never
        assert candidates(tmp_path, resume) == [str(path) for path in expected]


def test_the_runs_own_come_before_those_of_resume_path(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for step in (50, 60):
        _write(other, step)
    theirs = [iteration_dir(other, 60), iteration_dir(other, 50)]
    assert candidates(own, str(other)) == theirs
    _write(own, 5)
    assert candidates(own, str(other)) == [iteration_dir(own, 5), *theirs]
    assert candidates(own, iteration_dir(other, 50)) == [iteration_dir(own, 5), theirs[1]]
    assert candidates(own, "auto") == [iteration_dir(own, 5)]


def test_resume_path_may_begin_with_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path / "other", 50)
    for resume in ("~/other", "~/other/iter_0000050"):
        assert candidates(tmp_path / "own", resume) == [str(tmp_path / "other" / "iter_0000050")]


def test_a_resume_path_with_nothing_in_it_is_named_all_the_same(tmp_path: Path) -> None:
    """Somebody has to say that there is nothing."""
    assert candidates(tmp_path / "own", str(tmp_path / "other")) == [str(tmp_path / "other")]


def test_the_checkpoint_says_on_which_backend_it_was_written(tmp_path: Path) -> None:
    for step, backend in ((5, "gloo"), (10, "nccl")):
        config = f"dist:\n  align_grad_reduce: true\n  distributed_backend: {backend}\nmodel:\n  x: 1\n"
        (_write(tmp_path, step) / "run_config.yaml").write_text(config)
    assert written_with(iteration_dir(tmp_path, 10)) == "nccl"
    assert written_with(iteration_dir(tmp_path, 5)) == "gloo"
    assert written_with(tmp_path) is None


def test_steps_that_are_left_out_add_up(tmp_path: Path) -> None:
    assert left_out(tmp_path) == [] == left_out(tmp_path / "missing")
    for step in (9, 3, 9, 12):
        leave_out(tmp_path, step)
    assert left_out(tmp_path) == [3, 9, 12]
    _write(tmp_path, 20)
    assert candidates(tmp_path, "auto") == [iteration_dir(tmp_path, 20)]


# Deletion


def _existing(directory: Path) -> list[int]:
    return sorted(steps_of(directory))


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "kept"),
    [
        (0, None, [10, 20, 30, 40, 50, 60, 70]),
        (0, 1, [10, 20, 30, 40, 50, 60, 70]),
        (None, None, [20, 30, 40, 60, 70]),
        (None, 0, [30, 40, 60, 70]),
        (1, None, [60, 70]),
        (2, 0, [40, 60, 70]),
        (1, 1, [20, 60, 70]),
        (1, 2, [20, 30, 60, 70]),
        (3, 1, [20, 30, 40, 60, 70]),
        (99, None, [10, 20, 30, 40, 60, 70]),
    ],
)
def test_the_newest_and_the_best_ones_stay(
    tmp_path: Path, keep_last: int | None, keep_best: int | None, kept: list[int]
) -> None:
    """50 and 70 are not whole: one that nobody will finish, and one that is being written."""
    for step, metric in {10: 3.0, 20: 1.0, 30: 1.5, 40: 2.0, 50: 0.0, 60: 1.75, 70: 0.0}.items():
        _write(tmp_path, step, whole=step not in (50, 70), metric=metric, deletable=True)
    gone = delete_old(tmp_path, keep_last, keep_best)
    assert _existing(tmp_path) == kept
    assert sorted([*gone, *kept]) == [10, 20, 30, 40, 50, 60, 70]


@pytest.mark.parametrize(
    ("newest", "keep_last", "kept"),
    [
        (0, None, [50, 60, 70]),
        (30, None, [10, 20, 30, 50, 60, 70]),
        (70, None, [10, 20, 30, 40, 50, 60, 70]),
        (30, 1, [70]),
        (30, 0, [10, 20, 30, 40, 50, 60, 70]),
    ],
)
def test_what_was_kept_for_good_goes_only_where_a_number_is_given(
    tmp_path: Path, newest: int, keep_last: int | None, kept: list[int]
) -> None:
    """A run that began with a raymb that kept all, or with --keep_last 0, resumes with the default.

    Args:
        newest: of those checkpoints, one of which is damaged.
    """
    for step in (10, 20, 30, 40, 50, 60, 70):
        mark = {"deletable": True} if step > newest else {"deletable": False} if step == 10 else {}
        _write(tmp_path, step, whole=step != 20, **mark)
    delete_old(tmp_path, keep_last, None)
    assert _existing(tmp_path) == kept


def test_the_flags_say_the_defaults() -> None:
    said = {name: field.description or "" for name, field in Checkpoint.model_fields.items()}
    assert f"Default: {KEEP_LAST}," in said["keep_last"] and f"Default: {KEEP_BEST}," in said["keep_best"]
    assert (Checkpoint().keep_last, Checkpoint(keep_last=0).keep_last) == (None, 0)
    with pytest.raises(ValidationError):
        Checkpoint(keep_last=-1)


def test_what_is_known_to_be_whole_is_not_looked_at_again(tmp_path: Path) -> None:
    """4,096 ranks write 8,192 files, and each publication looked at those of every checkpoint, twice."""
    for step in (10, 20):
        _write(tmp_path, step)
    known = whole(tmp_path)
    assert sorted(known) == [10, 20]
    (Path(iteration_dir(tmp_path, 10)) / "common.pt").unlink()
    shutil.rmtree(iteration_dir(tmp_path, 20))
    _write(tmp_path, 30)
    _write(tmp_path, 40, whole=False)
    assert whole(tmp_path, known) == {10: known[10], 30: read_manifest(iteration_dir(tmp_path, 30))}
    assert sorted(whole(tmp_path)) == [30]


def test_of_equally_good_ones_the_later_stays(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        _write(tmp_path, step, metric=1.0 if step < 30 else 2.0)
    delete_old(tmp_path, 1, 1)
    assert _existing(tmp_path) == [20, 30]


def test_with_nothing_whole_nothing_is_deleted(tmp_path: Path) -> None:
    for step in (10, 20):
        _write(tmp_path, step, whole=False)
    assert delete_old(tmp_path, 1, None) == []
    assert _existing(tmp_path) == [10, 20]


def test_what_is_half_deleted_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20):
        _write(tmp_path, step, metric=float(step))
    seen: list[str] = []

    def killed(directory: Path, **settings: Any) -> None:
        if Path(directory).name == "iter_0000010":
            seen.append(why_not_whole(directory))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        delete_old(tmp_path, 1, None)
    assert seen == [NO_MANIFEST]
    assert (latest_step(tmp_path), best_step(tmp_path)) == (20, 20)
    assert delete_old(tmp_path, 1, None) == [10]  # the next time the rest goes
    assert _existing(tmp_path) == [20]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for step in (10, 20):
        _write(tmp_path, step)
    point(tmp_path, LATEST, 20)
    (tmp_path / "fingerprint.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    delete_old(tmp_path, 1, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fingerprint.json", "iter_0000020", "latest", "mine"]


@pytest.mark.parametrize(("newest", "stays"), [(10, True), (20, True), (30, False)])
def test_a_reshaped_checkpoint_stays_until_a_newer_one_is_whole(tmp_path: Path, newest: int, stays: bool) -> None:
    _write(tmp_path, newest)
    _write(tmp_path, 40, whole=False)
    _write(reshaped(tmp_path), 20)
    delete_old(tmp_path, None, None)
    assert reshaped(tmp_path).exists() is stays


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.integers(1, 9), st.tuples(st.booleans(), st.none() | st.integers(0, 3)), max_size=6),
    st.integers(1, 4),
    st.none() | st.integers(0, 3),
)
def test_whatever_is_there_what_matters_stays(
    tmp_path: Path, found: dict[int, tuple[bool, int | None]], keep_last: int, keep_best: int | None
) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    for step, (is_whole, metric) in found.items():
        _write(tmp_path / "checkpoints", step, whole=is_whole, metric=metric)
    before = latest_step(tmp_path / "checkpoints"), best_step(tmp_path / "checkpoints")
    gone = delete_old(tmp_path / "checkpoints", keep_last, keep_best)
    left = set(_existing(tmp_path / "checkpoints"))
    assert left == set(found) - set(gone)
    complete = sorted(step for step, (is_whole, _) in found.items() if is_whole)
    assert set(complete[-keep_last:]) <= left
    assert {step for step in found if not complete or step > complete[-1]} <= left, "one that is being written"
    assert latest_step(tmp_path / "checkpoints") == before[0]
    if keep_best:
        assert best_step(tmp_path / "checkpoints") == before[1]
    ranked = sorted((metric, -step) for step, (is_whole, metric) in found.items() if is_whole and metric is not None)
    best = {-step for _, step in ranked[: keep_best or 0]}
    newer = {step for step in found if step > complete[-1]} if complete else set(found)
    assert left == set(complete[-keep_last:]) | best | newer
    assert json.dumps(delete_old(tmp_path / "checkpoints", keep_last, keep_best)) == "[]", "once is enough"

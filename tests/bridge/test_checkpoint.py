"""Which checkpoint counts, and where a run goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raymb.bridge.checkpoint import iteration_dir, latest_step, point_latest_at, where_to_resume, written_with


def _checkpoint(directory: Path, step: int) -> None:
    Path(iteration_dir(directory, step)).mkdir(parents=True)


def test_latest_names_the_iteration_directory(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 20)
    point_latest_at(tmp_path, 20)
    assert (tmp_path / "latest").read_text() == "iter_0000020\n"
    assert latest_step(tmp_path) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000020", "latest"]


def test_latest_moves_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20):
        _checkpoint(tmp_path, step)
    point_latest_at(tmp_path, 10)

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        point_latest_at(tmp_path, 20)
    assert latest_step(tmp_path) == 10


def test_more_than_seven_digits(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 12345678)
    point_latest_at(tmp_path, 12345678)
    assert latest_step(tmp_path) == 12345678


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_step(tmp_path) is None
    assert latest_step(tmp_path / "missing") is None
    (tmp_path / "file").write_text("")
    assert latest_step(tmp_path / "file") is None


def test_pointer_to_a_missing_directory_does_not_count(tmp_path: Path) -> None:
    point_latest_at(tmp_path, 20)
    assert latest_step(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"20\n", b"iter_20\n", b"../iter_0000020\n", b"iter_0000020x\n", b"\xff\xfe"])
def test_garbage_pointer_does_not_count(tmp_path: Path, content: bytes) -> None:
    _checkpoint(tmp_path, 20)
    (tmp_path / "latest").write_bytes(content)
    assert latest_step(tmp_path) is None


def test_resume_takes_the_runs_own_checkpoint_first(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    assert where_to_resume(str(own), "auto") is None
    assert where_to_resume(str(own), "never") is None
    assert where_to_resume(str(own), str(other)) == str(other)
    _checkpoint(own, 5)
    point_latest_at(own, 5)
    for resume in ("auto", "never", str(other)):  # a restarted worker group of a run that began with --resume never
        assert where_to_resume(str(own), resume) == str(own)


def test_the_newest_checkpoint_says_on_which_backend_it_was_written(tmp_path: Path) -> None:
    assert written_with(tmp_path) is None
    for step, backend in ((5, "gloo"), (10, "nccl")):
        _checkpoint(tmp_path, step)
        config = f"dist:\n  align_grad_reduce: true\n  distributed_backend: {backend}\nmodel:\n  x: 1\n"
        Path(iteration_dir(tmp_path, step), "run_config.yaml").write_text(config)
    assert written_with(tmp_path) == "nccl"
    assert written_with(iteration_dir(tmp_path, 5)) == "gloo"

"""The lock: who holds it, when it is stale, and that of many who take over a stale one exactly one gets it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raymb.storage import lock

PROCESSES, ROUNDS = 8, 200


def ended_process() -> str:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"{socket.gethostname()} {ended.pid} 1\n"


def test_taken_once_and_again_after_its_release(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert lock.take(file) and lock.is_held(file)
    assert lock.owner(file) == f"process {os.getpid()} on {socket.gethostname()}"
    assert not lock.take(file)
    lock.release(file)
    assert not lock.is_held(file) and lock.take(file)
    assert list(tmp_path.iterdir()) == [file]


def test_of_a_live_process_counts_however_old(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock.take(file)
    os.utime(file, (1, 1))
    assert lock.is_held(file) and not lock.take(file)


def test_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text(ended_process())
    assert not lock.is_held(file) and lock.take(file)
    assert file.read_text() == lock.this_process()
    assert list(tmp_path.iterdir()) == [file]


def test_of_a_process_that_nobody_has_waited_for_is_stale(tmp_path: Path) -> None:
    """A supervisor that starts the next driver before it asks what became of the last."""
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as zombie:
        assert zombie.stdout is not None
        zombie.stdout.read()  # until it has closed its end
        deadline = time.monotonic() + 10
        while lock.process_lives(zombie.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not lock.process_lives(zombie.pid)
        os.kill(zombie.pid, 0)  # it is still there


def test_of_an_earlier_process_with_the_same_number_is_stale(tmp_path: Path) -> None:
    """A container that is started again keeps its host name, and its driver is process 1 again."""
    (tmp_path / "lock").write_text(f"{socket.gethostname()} {os.getpid()} 1\n")
    assert not lock.is_held(tmp_path / "lock")


def test_of_another_host_goes_by_the_storages_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"
    file.write_text("another-host 1 1\n")
    monkeypatch.setattr(time, "time", lambda: 1e12)  # this host's clock jumps
    assert lock.is_held(file)
    touched = file.stat().st_mtime
    monkeypatch.setattr(lock, "_storage_time", lambda directory: touched + 59)
    assert lock.is_held(file)
    monkeypatch.setattr(lock, "_storage_time", lambda directory: touched + 61)
    assert not lock.is_held(file)
    monkeypatch.undo()
    os.utime(file, (1, 1))
    assert not lock.is_held(file)
    os.utime(file)
    assert lock.is_held(file)


def test_whose_lock_it_is_by_now_is_told_at_each_touch(tmp_path: Path) -> None:
    """This driver was frozen, and another host took it for dead."""
    file = tmp_path / "lock"
    assert lock.take(file)
    os.utime(file, (1, 1))
    assert lock.touch(file) and file.stat().st_mtime > 1
    file.write_text("another-host 1 1\n")
    os.utime(file, (1, 1))
    assert not lock.touch(file) and file.stat().st_mtime == 1
    file.write_text("")  # it is being written
    assert lock.touch(file)
    file.unlink()
    assert lock.touch(file), "somebody deletes the directory: nobody else has it"


def test_from_the_future_is_not_stale(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("another-host 1 1\n")
    os.utime(file, (time.time() + 1e6,) * 2)
    assert lock.is_held(file) and not lock.take(file)


def test_being_written_counts_while_young(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("")
    assert lock.is_held(file) and lock.owner(file) == "another run"
    os.utime(file, (1, 1))
    assert lock.take(file)


def test_release_leaves_anothers_lock(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    lock.take(file)
    file.write_text("another-host 1 1\n")
    lock.release(file)
    assert file.exists()


def test_touch_and_release_without_a_lock_do_nothing(tmp_path: Path) -> None:
    lock.touch(tmp_path / "lock")
    lock.release(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock, "this_process", full)
    with pytest.raises(OSError, match="No space"):
        lock.take(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_who_looked_before_another_took_over_does_not_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find it stale; the second one continues when the first one has it."""
    file = tmp_path / "lock"
    file.write_text(ended_process())
    is_held, theirs = lock.is_held, "another-host 1 1\n"

    def look_and_be_overtaken(looked_at: Path) -> bool:
        held = is_held(looked_at)
        file.write_text(theirs)
        return held

    monkeypatch.setattr(lock, "is_held", look_and_be_overtaken)
    assert not lock.take(file)
    assert file.read_text() == theirs
    assert list(tmp_path.iterdir()) == [file]


def test_a_take_over_whose_driver_died_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    for name in ("lock", "lock.takeover", "lock.takeover.takeover"):
        (tmp_path / name).write_text(ended_process())
    assert lock.take(file)
    assert list(tmp_path.iterdir()) == [file]


def test_of_many_who_take_over_at_once_one_gets_it(tmp_path: Path) -> None:
    """Every other round the take-over itself is stale, too."""
    context = multiprocessing.get_context("spawn")
    start, end = context.Barrier(PROCESSES + 1, timeout=60), context.Barrier(PROCESSES + 1, timeout=60)
    winners = context.Array("i", PROCESSES)
    racers = [
        context.Process(target=_race, args=(tmp_path, number, start, end, winners), daemon=True)
        for number in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    stale = ended_process()
    counts = []
    for number in range(ROUNDS):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "lock").write_text(stale)
        if number % 2:
            (place / "lock.takeover").write_text(stale)
        start.wait()
        end.wait()
        counts.append(sum(winners))
        assert [file.name for file in place.iterdir()] == ["lock"]
        shutil.rmtree(place)
    for racer in racers:
        racer.join(30)
    assert counts == [1] * ROUNDS


def _race(storage: Path, number: int, start: Any, end: Any, winners: Any) -> None:
    for turn in range(ROUNDS):
        start.wait()
        winners[number] = int(lock.take(storage / str(turn) / "lock"))
        end.wait()

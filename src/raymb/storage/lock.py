"""A lock file: one driver at a time in a run directory, on one host and on storage that several hosts share.

Not filelock's: its locks of this kind (SoftFileLease) take a dead owner's file over by exchanging two names, which NFS
refuses, so that the file would stay there; and none tells who holds it without taking it (`raymb runs`).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from pathlib import Path

_OWNER = re.compile(r"(?P<host>\S+) (?P<pid>\d+) (?P<start>\d+|-)\n")
_STALE_AFTER = 60.0  # seconds without a touch; a live driver touches it every few seconds


def take(file: Path) -> bool:
    """Become the lock's owner; False if somebody else is.

    Making a file that must not exist is atomic everywhere (on NFS since version 3). Taking over a stale lock is not:
    it is removed and made anew, and a second driver that found it stale a moment before would then remove the first
    one's. So both steps are done under a lock of their own, and there it is looked again: who comes second finds a
    lock that is held. A driver that dies in between leaves the other lock stale, and that is taken over like this one.
    flock would be shorter, but not every shared storage passes it on to other hosts.

    What no file can prevent: a driver that another host takes for dead (frozen for a minute) wakes up and continues,
    until its next touch.

    Raises:
        OSError: the directory cannot be written.
    """
    if _make(file):
        return True
    if is_held(file):
        return False
    takeover = file.with_name(f"{file.name}.takeover")
    if not take(takeover):
        return False
    try:
        if is_held(file):
            return False
        file.unlink(missing_ok=True)
        return _make(file)
    finally:
        release(takeover)


def is_held(file: Path) -> bool:
    """A lock counts on this host while its owner's process lives; from another host, while its owner touches it."""
    try:
        with open(file, encoding="ascii", errors="replace") as stream:
            owner = _OWNER.fullmatch(stream.read())
            touched = os.fstat(stream.fileno()).st_mtime  # of the opened file: NFS asks its server then, not its cache
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it is there: better refused than taken from somebody who lives
    if owner is not None and owner["host"] == socket.gethostname():
        return process_lives(int(owner["pid"]), owner["start"])
    now = _storage_time(file.parent)
    if now is None:
        return False  # nobody can take it there, and whoever tries is told why
    return now - touched < _STALE_AFTER  # also one that is being written just now, and one from the future


def owner(file: Path) -> str:
    """Whose lock it is, in words."""
    with contextlib.suppress(OSError):
        found = _OWNER.fullmatch(file.read_text(encoding="ascii", errors="replace"))
        if found is not None:
            return f"process {found['pid']} on {found['host']}"
    return "another run"


def touch(file: Path) -> bool:
    """Say that the owner lives. False if the lock is somebody else's by now, who took this process for dead."""
    with contextlib.suppress(OSError):
        text = file.read_text(encoding="ascii", errors="replace")
        if _OWNER.fullmatch(text) and text != this_process():
            return False
        os.utime(file)
    return True


def release(file: Path) -> None:
    """Remove the lock, unless it is somebody else's by now."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if file.read_text(encoding="ascii", errors="replace") == this_process():
            file.unlink()


def process_lives(pid: int, start: str = "-") -> bool:
    """Whether a process of this host runs, and began at `start` where that is known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    state, now = _state_and_start(pid)
    return state not in ("Z", "X") and (now == start or "-" in (now, start))


def _make(file: Path) -> bool:
    try:
        stream = open(file, "x", encoding="ascii")  # noqa: SIM115
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(this_process())
    except OSError:
        file.unlink(missing_ok=True)
        raise
    return True


def this_process() -> str:
    """Host, process and its start: what is written into a lock."""
    return f"{socket.gethostname()} {os.getpid()} {_state_and_start(os.getpid())[1]}\n"


def _state_and_start(pid: int) -> tuple[str, str]:
    """A process's state (Z: ended, and its parent has not asked yet) and its start in ticks since boot; "-" where there
    is no /proc. A container that is started again has its old name and gives its driver the old number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = text.rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "-", "-"


def _storage_time(directory: Path) -> float | None:
    """The time by the clock that stamps files there, which is no host's own on shared storage; None if nothing can be
    written."""
    try:
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".clock.") as probe:
            os.utime(probe.fileno())
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return None

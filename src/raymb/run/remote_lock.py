"""One driver at a time for a run at a URI: an object that its owner writes again every few seconds.

Clocks are not compared. Who finds a lock looks at it until it changes (its owner lives) or has not changed for a minute
(it does not): the time is the one that passes here, and "changed" is what the storage says of the object.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from raymb.errors import RunDirError, StorageError
from raymb.run.directory import RunDir
from raymb.storage.lock import process_lives, this_process
from raymb.storage.remote import Remote

_NAME = "lock"
_SECONDS_BETWEEN_BEATS = 10.0
_STALE_AFTER = 60.0
_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_FOR_ANOTHER_TAKER = 2.0


class RemoteLock:
    """The lock of a run at a URI; for a local run all methods do nothing.

    Use:
        lock = RemoteLock(run)
        lock.take(console.print)
        ... lock.lost is set when another driver has taken the run over: nothing may be written any more ...
        lock.release()
    """

    def __init__(self, run: RunDir):
        self.remote: Remote | None = run.remote
        self.mine = this_process()
        self.lost = threading.Event()
        self.released = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="raymb-lock", daemon=True)

    def take(self, say: Callable[[str], Any] = lambda text: None) -> None:
        """Take the lock and keep it. Waits up to a minute where another driver may have died.

        Args:
            say: takes a sentence before such a wait.

        Raises:
            RunDirError: another driver lives, or was faster; or the URI cannot be written.
        """
        if self.remote is None:
            return
        try:
            while not self.remote.create_text(_NAME, self.mine):
                if self._take_over(self.remote, say):
                    break
            if self.remote.read_text(_NAME) != self.mine:
                raise self._refusal(self.remote)
        except StorageError as error:
            raise RunDirError(error.message, error.hint) from error
        self.thread.start()

    def release(self) -> None:
        """Let the next driver in; a lock that cannot be deleted becomes stale."""
        self.released.set()
        if self.remote is None or self.thread.ident is None:
            return
        self.thread.join(_SECONDS_BETWEEN_BEATS)
        with contextlib.suppress(StorageError):
            if self.remote.read_text(_NAME) == self.mine:
                self.remote.delete(_NAME)

    def _take_over(self, remote: Remote, say: Callable[[str], Any]) -> bool:
        """From a driver that is gone. False if the lock has gone as well."""
        first = _look(remote)
        if first is None:
            return False
        if not _died_here(first[0]):
            say(f"{remote.url} was used by {_owner(first[0])}: looking for up to {_STALE_AFTER:g} s whether it lives")
            end = time.monotonic() + _STALE_AFTER
            while time.monotonic() < end:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                now = _look(remote)
                if now is None:
                    return False
                if now != first:
                    raise self._refusal(remote)
        remote.write_text(_NAME, self.mine)
        time.sleep(_SECONDS_FOR_ANOTHER_TAKER)  # who found it stale at the same time; the last one to write has it
        return True

    def _refusal(self, remote: Remote) -> RunDirError:
        return RunDirError(
            f"{remote.url} is in use by {_owner(remote.read_text(_NAME) or '')}",
            "ways out: --experiment_name NEW_NAME, another --storage_path, or end that run and resume with "
            "--resume auto",
        )

    def _beat(self) -> None:
        assert self.remote is not None
        while not self.released.wait(_SECONDS_BETWEEN_BEATS):
            # A storage that does not answer may come back, and then the content says whether we were too late.
            with contextlib.suppress(StorageError):
                if self.remote.read_text(_NAME) != self.mine:
                    self.lost.set()
                    return
                self.remote.write_text(_NAME, self.mine)


def _look(remote: Remote) -> tuple[str, str | None] | None:
    """(owner, what tells one beat from the next)."""
    text = remote.read_text(_NAME)
    return None if text is None else (text, remote.version(_NAME))


def _died_here(text: str) -> bool:
    """Whether the owner was a process of this host."""
    host, pid, start = (*text.split(), "", "", "")[:3]
    return host == socket.gethostname() and pid.isdigit() and not process_lives(int(pid), start or "-")


def _owner(text: str) -> str:
    host, pid, *_ = (*text.split(), "", "")
    return f"process {pid} on {host}" if pid else "another run"

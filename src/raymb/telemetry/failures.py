"""failures/N.md: what happened, to whom, and how the run resumed. The console says the same in five lines."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymb.credentials import redacted
from raymb.telemetry.records import Failed, Hang, RankStatus

_LOG_LINES = 20
_FATAL = re.compile(r"^(?:Fatal Python error: (.+)|(Timeout \(\d.*\))!)$", re.M)  # as faulthandler writes it


@dataclass
class Failure:
    """One failure.

    Args:
        number: N of its page.
        record: what the controller said.
        status: rank to the last status record that arrived from it.
        reached: the last step that any rank had finished.
        hangs: the hang records of this start.
        log: what the causing rank has written to its log since this start.
        ray_said: what Ray said of workers and nodes meanwhile.
        began: when it became known, on the monotonic clock.
    """

    number: int
    record: Failed
    status: dict[int, RankStatus]
    reached: int
    hangs: list[Hang]
    log: list[str]
    ray_said: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    resumed: int | None = None
    seconds: float | None = None
    unwritten: str = ""
    """Why its page could not be written."""

    @property
    def rank(self) -> int | None:
        """The rank that failed first: a stopped one, where others found themselves waiting."""
        stopped = [int(rank) for hang in self.hangs for rank, state in hang["others"].items() if state == "stopped"]
        return stopped[0] if stopped else self.record["rank"]

    @property
    def what(self) -> str:
        """The exception, the signal or the hang."""
        if self.hangs:
            stopped = "its process is stopped" if self._is_stopped() else "stacks in logs/"
            return f"no progress in {self.hangs[0]['in']} ({stopped})"
        if not self.record["died"]:
            return self.record["text"]
        fatal = ["".join(found) for found in _FATAL.findall("\n".join(self.log))]
        return fatal[-1] if fatal else "the process died without an exception (SIGKILL, or out of memory)"

    @property
    def log_tail(self) -> list[str]:
        return self.log[-_LOG_LINES:]

    @property
    def lost(self) -> int | None:
        return None if self.resumed is None else max(0, self.reached - self.resumed)

    def _is_stopped(self) -> bool:
        return any("stopped" in hang["others"].values() for hang in self.hangs)

    def where(self) -> tuple[str, str]:
        """(node, phase) of the rank that failed; where none did, how far the run had come."""
        if self.rank is None and self.status:
            return "-", f"after step {self.reached}"
        status = self.status.get(self.rank) if self.rank is not None else None
        if status is None:
            return "unknown", "starting"
        return status["node"], f"step {self.reached + 1}" if status["in"] == "step" else status["in"]


class Failures:
    """The failures of a run, as the driver hears of them.

    Args:
        directory: failures/ of the run directory; pages of earlier starts stay.
        logs: the directory of the workers' logs.
    """

    def __init__(self, directory: Path, logs: Path, ray_said: MutableSequence[str] | None = None):
        self.directory, self.logs = directory, logs
        self.ray_said: MutableSequence[str] = [] if ray_said is None else ray_said
        self.status: dict[int, RankStatus] = {}
        self.reached = 0
        self.hangs: list[Hang] = []
        self.open: list[Failure] = []
        self.before = self._sizes()
        self.last = 0

    def heard(self, record: RankStatus | Hang) -> None:
        """A rank's status, or its word that it hangs."""
        if record["kind"] == "hang":
            self.hangs.append(record)
        else:
            self.status[record["rank"]] = record
            self.finished(record["step"])

    def finished(self, step: int) -> None:
        """Some rank has finished a step."""
        self.reached = max(self.reached, step)

    def failed(self, record: Failed) -> Failure:
        """Write the page of a failure if it can be; the workers' states are those of the start that ended."""
        pages = [int(page.stem) for page in self.directory.glob("*.md") if page.stem.isdigit()]
        self.last = 1 + max([self.last, *pages])
        workers = {rank: redacted(text) for rank, text in record["workers"].items()}
        record = {**record, "text": redacted(record["text"]), "workers": workers}
        failure = Failure(self.last, record, self.status, self.reached, self.hangs, [])
        failure.log = self._log(failure.rank)
        self.status, self.reached, self.hangs, self.before = {}, 0, [], self._sizes()
        self._write(failure)
        self.open = [*self.open, failure] if record["restarts"] else []
        return failure

    def resumed(self, step: int) -> Failure | None:
        """The workers train again from this step: the pages of all failures since they trained last get their end.

        Returns:
            the first of them, which the others only made longer; None if there was none.
        """
        ended, self.open = self.open, []
        for failure in ended:
            failure.resumed, failure.seconds = step, time.monotonic() - failure.began
            self._write(failure)
        return ended[0] if ended else None

    def page(self, failure: Failure) -> Path:
        return self.directory / f"{failure.number}.md"

    def _log(self, rank: int | None) -> list[str]:
        """A rank's log without what earlier starts wrote there."""
        if rank is None:
            return []
        file = self.logs / f"worker-{rank:05d}.log"
        try:
            with open(file, "rb") as stream:
                stream.seek(self.before.get(file, 0))
                return redacted(stream.read().decode("utf-8", "replace")).splitlines()
        except OSError:
            return []

    def _sizes(self) -> dict[Path, int]:
        found = {}
        for file in self.logs.glob("worker-*.log"):
            with contextlib.suppress(OSError):  # gone meanwhile
                found[file] = file.stat().st_size
        return found

    def _write(self, failure: Failure) -> None:
        failure.ray_said += map(redacted, self.ray_said)
        self.ray_said.clear()
        failure.unwritten = ""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.page(failure).write_text(render(failure), encoding="utf-8")
        except OSError as error:
            failure.unwritten = f"could not be written: {error}"


def render(failure: Failure) -> str:
    """The page, as Markdown."""
    record, (node, phase) = failure.record, failure.where()
    rows = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(record["time"])),
        "rank": "none" if failure.rank is None else failure.rank,
        "node": node,
        "phase": phase,
        "what": failure.what,
        "last finished step": failure.reached,
        "decision": _decision(record),
        "resumed from": "-" if failure.resumed is None else f"step {failure.resumed}",
        "steps lost": "-" if failure.lost is None else failure.lost,
        "seconds to training again": "-" if failure.seconds is None else f"{failure.seconds:.1f}",
    }
    others = {rank: text for rank, text in record["workers"].items() if rank != str(failure.rank)}
    table = "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items())
    workers = "".join(f"- rank {rank}: {text}\n" for rank, text in others.items()) or "- none\n"
    said = "\n".join(failure.log_tail) or "(nothing)"
    log = "" if failure.rank is None else f"\n## Last lines of rank {failure.rank}'s log\n\n```\n{said}\n```\n"
    words = "".join(f"- {line}\n" for line in failure.ray_said)
    ray = words and f"\n## What Ray said\n\n{words}"
    return (
        f"# Failure {failure.number}\n\n| | |\n|---|---|\n{table}\n## What the other ranks said\n\n{workers}{ray}{log}"
    )


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|")


def console_lines(failure: Failure, page: Path) -> list[str]:
    """The same in four lines; a fifth comes when the workers train again."""
    node, phase = failure.where()
    who = "the run" if failure.rank is None else f"rank {failure.rank} on {node}"
    last = next((line.strip() for line in reversed(failure.log_tail) if line.strip()), "(nothing)")
    return [
        f"failure {failure.number}: {who}, {phase}: {failure.what}",
        f"  last log line  {last[:160]}",
        f"  decision       {_decision(failure.record)}",
        f"  page           {failure.unwritten or page}",
    ]


def resumed_line(failure: Failure) -> str:
    return (
        f"  resumed        from step {failure.resumed} after {failure.seconds:.0f} s, {failure.lost} steps to do again"
    )


def _decision(record: Failed) -> str:
    if record["restarts"]:
        return f"start again (failures: {record['failures']} of at most {record['max_failures']})"
    return (
        f"give up: {record['why'] or 'the ' + str(record['max_failures']) + ' restarts (--max_failures) are used up'}"
    )

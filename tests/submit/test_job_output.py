"""Following a Ray job by a client that answers as told; test_real.py has a job server, and a line that is cut."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.dashboard.modules.job.common import JobStatus

from raymb.errors import RaymbError
from raymb.submit import job_output
from raymb.submit.job_output import JobOutput

LINES = [f"step {step}\n" for step in range(1, 9)]


@dataclass
class Info:
    status: JobStatus
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Client:
    """Of a job that has written `written` lines, whose streams break off or end after so many."""

    streams: list[tuple[int, Exception | None]]
    ends: Info
    infos: list[Any] = field(default_factory=list)
    written: int = len(LINES)

    async def tail_job_logs(self, identity: str) -> AsyncIterator[str]:
        upto, error = self.streams.pop(0)
        for line in LINES[:upto]:
            yield line
        if error is not None:
            raise error

    def get_job_info(self, identity: str) -> Any:
        info = self.infos.pop(0) if self.infos else self.ends
        if isinstance(info, Exception):
            raise info
        return info

    def get_job_logs(self, identity: str) -> str:
        return "".join(LINES[: self.written])


RUNNING = Info(JobStatus.RUNNING)
BROKEN = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_output, "_SECONDS_BETWEEN_CALLS", 0.01)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (Info(JobStatus.SUCCEEDED, 0), 0),
        (Info(JobStatus.FAILED, 75), 75),
        (Info(JobStatus.FAILED, -9, "killed"), 1),
        (Info(JobStatus.FAILED, None, "the node died"), 1),
        (Info(JobStatus.STOPPED, 0), 1),
    ],
)
def test_every_line_once_and_the_jobs_own_end(ends: Info, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A stream that breaks off, one that just ends, a server that is away, and an end that no stream has told."""
    client = Client([(3, BROKEN), (2, None), (5, OSError("refused")), (6, None)], ends, [RUNNING, RUNNING, BROKEN])
    assert JobOutput(client, "job").follow() == code
    said = capsys.readouterr()
    assert said.out == "".join(LINES) + f"job: {ends.status.value}\n"
    assert "connecting again" in said.err and ends.message in said.err


def test_a_server_that_stays_away_is_no_end_of_the_job() -> None:
    client = Client([(1, BROKEN)] * 100, RUNNING, [OSError("refused")] * 100)
    with pytest.raises(RaymbError, match=r"has not answered for 0\.05 s") as raised:
        JobOutput(client, "job", patience=0.05).follow()
    assert raised.value.exit_code == 1 and "ray job status job" in raised.value.hint


def test_a_server_that_takes_a_question_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_output, "_SECONDS_TO_ANSWER", 0.05)

    class Mute(Client):
        def get_job_info(self, identity: str) -> Any:
            time.sleep(3600)

    start = time.monotonic()
    with pytest.raises(RaymbError, match="has not answered"):
        JobOutput(Mute([(1, BROKEN)] * 100, RUNNING), "job", patience=0.1).follow()
    assert time.monotonic() - start < 30


def test_a_cluster_that_has_forgotten_the_job() -> None:
    client = Client([(1, BROKEN)], RUNNING, [RuntimeError("Request failed with status code 404: job does not exist")])
    with pytest.raises(RaymbError, match="no longer knows this job"):
        JobOutput(client, "job").follow()


def test_a_silent_stream_is_left_when_there_is_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a laptop's sleep: the connection seems to be there, and nothing comes."""
    import asyncio

    monkeypatch.setattr(job_output, "_SECONDS_OF_SILENCE", 0.05)

    class Silent(Client):
        async def tail_job_logs(self, identity: str) -> AsyncIterator[str]:
            yield LINES[0]
            await asyncio.sleep(3600)

    assert JobOutput(Silent([], Info(JobStatus.SUCCEEDED, 0), [RUNNING, RUNNING]), "job").follow() == 0
    assert capsys.readouterr().out == "".join(LINES) + "job: SUCCEEDED\n"

"""The output of a Ray job as it comes, until the job itself has ended: a connection that drops ends nothing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from raymb.errors import EXIT_FAILED, EXIT_OK, RaymbError, last_line

_SECONDS_OF_SILENCE = 60.0
"""After which it is looked whether the stream still lives: one that a network forgets says nothing about it."""
_SECONDS_BETWEEN_CALLS = 2.0
_SECONDS_TO_ANSWER = 60.0


class JobOutput:
    """
    Args:
        client: of the job server.
        identity: the job's.
        patience: seconds for which the server may answer nothing.
    """

    def __init__(self, client: Any, identity: str, patience: float = 600.0):
        self.client, self.identity, self.patience = client, identity, patience
        self._shown = 0

    def follow(self) -> int:
        """Print the output; the same text is never printed twice.

        Returns:
            0, or the exit code of the job's driver, which is 1 where there is none.

        Raises:
            RaymbError: the server has not answered for too long.
        """
        return asyncio.run(self._follow())

    async def _follow(self) -> int:
        answered = time.monotonic()
        while True:
            broken = await self._stream()
            info = await self._state()
            if info is not None:
                answered = time.monotonic()
                if info.status.is_terminal():
                    return await self._end(info)
            elif time.monotonic() - answered > self.patience:
                raise RaymbError(
                    f"{self.identity}: the job server has not answered for {self.patience:g} s ({broken})",
                    f"the job may go on: ray job status {self.identity}",
                )
            if broken:
                _note(f"the stream of the job's output broke off ({broken}); connecting again")
            await asyncio.sleep(_SECONDS_BETWEEN_CALLS)

    async def _stream(self) -> str:
        """Print what comes until the stream ends. Returns why it broke off; "" if it just ended."""
        seen, stream = 0, aiter(self.client.tail_job_logs(self.identity))  # from the beginning each time
        coming = asyncio.ensure_future(anext(stream))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=_SECONDS_OF_SILENCE)
                if not done:
                    if await self._is_behind():
                        return "it was silent while the job went on"
                    continue
                text = coming.result()
                self._print(text, seen)
                seen += len(text)
                coming = asyncio.ensure_future(anext(stream))
        except StopAsyncIteration:
            return ""
        except Exception as error:  # aiohttp's, the operating system's and the client's own
            return last_line(error)
        finally:
            if coming.cancel():
                await asyncio.wait({coming})
            await stream.aclose()

    def _print(self, text: str, begins_at: int) -> None:
        """What is new of a text that begins at a character of the output."""
        new = text[max(0, self._shown - begins_at) :]
        print(new, end="", flush=True)
        self._shown += len(new)

    async def _is_behind(self) -> bool:
        """Whether there is more than the stream has brought, or nothing can come any more."""
        info, text = await self._state(), await self._text()
        return len(text) > self._shown or (info is not None and info.status.is_terminal())

    async def _state(self) -> Any:
        """Of the job; None where the server does not answer.

        Raises:
            RaymbError: it knows no such job.
        """
        try:
            return await _asked(self.client.get_job_info, self.identity)
        except (RuntimeError, OSError) as error:
            if "does not exist" in str(error):
                raise RaymbError(
                    f"{self.identity}: the cluster no longer knows this job; its head has changed"
                ) from None
            return None

    async def _text(self) -> str:
        """All of the output; "" where it is not to be had."""
        try:
            return await _asked(self.client.get_job_logs, self.identity) or ""
        except (RuntimeError, OSError):
            return ""

    async def _end(self, info: Any) -> int:
        """The rest of the output, then how the job has ended."""
        self._print(await self._text(), 0)
        print(f"{self.identity}: {info.status.value}")
        if info.status == "SUCCEEDED":
            return EXIT_OK
        _note(info.message or "")
        return info.driver_exit_code if (info.driver_exit_code or 0) > 0 else EXIT_FAILED


async def _asked(call: Callable[[str], Any], identity: str) -> Any:
    """In a thread that nobody waits for in the end: the client's requests have no time limit.

    Raises:
        TimeoutError: no answer; an OSError.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not answer.done():
            set_it(value)

    def ask() -> None:
        try:
            told = answer.set_result, call(identity)
        except Exception as error:
            told = answer.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, *told)

    threading.Thread(target=ask, daemon=True).start()
    return await asyncio.wait_for(answer, _SECONDS_TO_ANSWER)


def _note(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)

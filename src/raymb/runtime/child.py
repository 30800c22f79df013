"""Work in a process of its own: `python -m MODULE` with one text as its input, whose last line of output is JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raymb


class Child:
    """
    Args:
        module: that runs, with the same raymb as here.
        settings: environment variables besides this process's own.
    """

    def __init__(self, module: str, settings: dict[str, str]):
        paths = (str(Path(raymb.__file__).parents[1]), os.environ.get("PYTHONPATH"))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **settings},
        )

    def result(self, given: str, beat: Callable[[], None]) -> tuple[Any, str]:
        """Wait for it.

        Args:
            beat: called every second meanwhile.

        Returns:
            (what its last line says, None if it failed; what it wrote to its standard error)
        """
        with self.process:
            try:
                output, errors = self._communicate(given, beat)
            finally:
                self.process.kill()
        return None if self.process.returncode else json.loads(output.strip().splitlines()[-1]), errors

    def _communicate(self, given: str | None, beat: Callable[[], None]) -> tuple[str, str]:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.communicate(given, timeout=1.0)
            given = None  # it is on its way
            beat()

    def kill(self) -> None:
        self.process.kill()

"""startup.json, by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raymb.telemetry import startup


def test_phases_add_up_and_one_that_comes_again_begins_once(tmp_path: Path) -> None:
    file = tmp_path / "startup.json"
    startup.command_begins(100.0)
    for phase, when in ((startup.ROWS, 101.5), (startup.RAY, 104.0), (startup.ROWS, 105.0)):
        startup.begin(phase, when)
    startup.write(file, 1, 110.0)
    phases = {startup.COMMAND: 1.5, startup.ROWS: 2.5, startup.RAY: 6.0}
    assert json.loads(file.read_text()) == {"step": 1, "seconds": 10.0, "phases": phases}
    startup.write(file, 2, 120.0)  # the next step is no first one
    assert json.loads(file.read_text())["step"] == 1


def test_nothing_is_written_where_no_command_was_given(tmp_path: Path) -> None:
    startup.begin(startup.RAY)
    startup.write(tmp_path / "startup.json", 1, time.time())
    assert not (tmp_path / "startup.json").exists()


def test_a_process_knows_when_it_began() -> None:
    program = "import time; time.sleep(1); from raymb.telemetry import startup; print(startup.process_began())"
    before = time.time()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert float(said.stdout) == pytest.approx(before, abs=0.5)

"""Jobs as a user submits them, from a working directory with a model and rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from raymb.cli import main
from tests.conftest import write_shape_only_model
from tests.models import write_rows
from tests.smoke.conftest import words_of

MODEL = ["--hf_model_path", "model", "--dataset", "rows"]
AWAY = ["--hf_model_path", "/shared/model", "--dataset", "/shared/rows"]
"""What only the cluster has."""
STORED = ["--storage_path", "s3://bucket/runs"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: model/, rows/."""
    write_shape_only_model(tmp_path / "model")
    write_rows(tmp_path / "rows")
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def rendered(home: Path) -> Callable[..., Path]:
    """Runs `raymb submit TARGET ... --dry_run` and returns the job's directory."""

    def render(target: str, *words: str, **flags: object) -> Path:
        given = [target, *words, *words_of(flags), "--job_name", "job", "--dry_run"]
        assert main(["submit", *given]) == 0, os.getcwd()
        return home / "raymb-jobs" / "job"

    return render


@pytest.fixture
def refused(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `raymb submit ...`, which must end with exit code 2; returns what it says."""

    def refuse(*words: str) -> str:
        capsys.readouterr()
        assert main(["submit", *words]) == 2
        return capsys.readouterr().err

    return refuse

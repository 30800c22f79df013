"""Real runs on the CPU: Bridge's own training loop in Ray workers. One Ray cluster serves all tests of a session."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models import make_tiny_qwen2, write_rows

MAIN_FLAGS = {
    "seq_length": 64,
    "train_iters": 10,
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
    "eval_interval": 0,
    "save_interval": 0,
    "backend": "cpu",
}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("models") / "tiny-qwen2")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture
def finetune(ray_cluster: None, tiny_qwen2: Path, rows: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs `raymb finetune` in this process and returns the run directory; the exit code must be `code`."""
    from raymb.cli import main

    def run(*overrides: str, code: int = 0, **flags: Any) -> Path:
        given = {"hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": tmp_path, "experiment_name": "run"}
        words = ["finetune", *overrides]
        for flag, value in {**given, **MAIN_FLAGS, **flags}.items():
            words += [f"--{flag}", *([] if value is True else [str(value)])]
        assert main(words) == code
        return Path(flags.get("storage_path", tmp_path)) / flags.get("experiment_name", "run")

    return run


def read_metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]

"""raymb.finetune in a Ray that this process had before, as a notebook has."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray

import raymb
from tests.smoke.conftest import FAULTS, MAIN_FLAGS, read_metrics, sharing_rows

pytestmark = pytest.mark.smoke


@pytest.fixture
def flags(ray_cluster: None, tiny_qwen2: Path, rows: Path, tmp_path: Path) -> dict[str, Any]:
    own = {
        "hf_model_path": tiny_qwen2,
        "dataset": rows,
        "storage_path": sharing_rows(tmp_path),
        "experiment_name": "run",
    }
    return {**MAIN_FLAGS, "ray_address": None, "train_iters": 4, "storage_path": sharing_rows(tmp_path), **own}


def test_from_a_thread_that_can_have_no_signal_handlers(flags: dict[str, Any]) -> None:
    flags |= {"num_workers": 2, "tp": 2, "eval_interval": 2, "save_interval": 2}
    runs: list[raymb.Run] = []
    thread = threading.Thread(target=lambda: runs.append(raymb.finetune(**flags)))
    thread.start()
    thread.join()
    (run,) = runs
    assert ray.is_initialized() and ray.get(ray.remote(lambda: 1).remote()) == 1
    assert run.state == "finished"
    train = run.metrics.query("kind == 'train'")
    assert list(train["step"]) == [1, 2, 3, 4]
    assert list(train["loss"]) == [one["loss"] for one in read_metrics(Path(run.path))]
    assert run.exported == Path(run.path) / "hf" and Path(run.exported, "model.safetensors").is_file()
    assert Path(str(run.best_checkpoint)).name in ("iter_0000002", "iter_0000004")
    assert run.spec.parallel.tensor_parallel_size == 2
    first, second = run.generate(["alpha beta", "gamma"], max_new_tokens=4)
    assert run.generate("alpha beta", max_new_tokens=4) == first and isinstance(second, str)
    assert raymb.finetune(**flags).path == run.path  # has finished: nothing is started


def test_an_interrupt_leaves_a_checkpoint(flags: dict[str, Any], tmp_path: Path) -> None:
    """What a notebook's stop button sends to its kernel."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        while not (tmp_path / "run" / "metrics.jsonl").exists() or len(read_metrics(tmp_path / "run")) < 2:
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(raymb.RunInterrupted) as interrupted:
            raymb.finetune(
                config={"train": {"train_iters": 5000}}, **{**flags, "train_iters": None, "export_hf": False}
            )
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    run = interrupted.value.run
    assert (run.state, ray.is_initialized()) == ("interrupted", True)
    step = read_metrics(tmp_path / "run")[-1]["step"]
    assert 2 <= step < 5000
    assert (tmp_path / "run" / "checkpoints" / f"iter_{step:07d}" / "manifest.json").is_file()


def test_a_failed_run_comes_with_the_error(flags: dict[str, Any], tmp_path: Path) -> None:
    faults = tmp_path / "faults.json"
    faults.write_text(json.dumps([{"do": "raise", "phase": "step", "rank": 0, "step": 1}]))
    env = {"PYTHONPATH": f"{FAULTS}{os.pathsep}src", "RAYMB_FAULTS": str(faults)}
    with pytest.raises(raymb.RunFailed, match="worker 0 failed") as failed:
        raymb.finetune(**flags, env=env, max_failures=0)
    assert failed.value.run is not None and failed.value.run.state == "failed"
    assert len(list(Path(failed.value.run.path).glob("failures/*.md"))) == 1
    assert ray.is_initialized()

"""Real runs on the CPU: Bridge's own training loop in Ray workers. One Ray cluster serves all tests of a session."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raymb.data.samples import samples_in
from raymb.data.store import RowFile
from tests.models import write_rows
from tests.smoke import forked
from tests.smoke.ray_workers import forking_workers

FAULTS = Path(__file__).parents[1] / "faults"
MAIN_FLAGS = {
    "seq_length": 64,
    "train_iters": 10,
    "global_batch_size": 8,
    "micro_batch_size": 1,
    "learning_rate": 1e-3,
    "eval_interval": 0,
    "save_interval": 0,
    "backend": "cpu",
    "omp_num_threads": 1,  # the cluster counts more CPUs than there are
    "ray_address": "local",  # unless the test's process is connected to a cluster
}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with tempfile.TemporaryDirectory() as place, forking_workers(Path(place, "workers")):
        ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows"))


def words_of(flags: dict[str, Any]) -> list[str]:
    """A command line: a list is a repeated flag, True a flag without a value, False its --no_ form, None none."""
    words: list[str] = []
    for flag, value in flags.items():
        for one in value if isinstance(value, list) else [value]:
            words += (
                [f"--no_{flag}"]
                if one is False
                else []
                if one is None
                else [f"--{flag}", *([] if one is True else [str(one)])]
            )
    return words


@functools.cache
def _prepared_rows() -> tempfile.TemporaryDirectory[str]:
    """For all storages of this process, so that rows of the same content are prepared once."""
    return tempfile.TemporaryDirectory()


def sharing_rows(storage: Path) -> Path:
    """A storage path with the rows that others of this process have prepared."""
    storage.mkdir(parents=True, exist_ok=True)
    if not (storage / "_prepared").exists():
        (storage / "_prepared").symlink_to(_prepared_rows().name)
    return storage


@pytest.fixture
def finetune(ray_cluster: None, tiny_qwen2: Path, rows: Path, tmp_path: Path) -> Callable[..., Path]:
    """Runs `raymb finetune` in this process and returns the run directory; the exit code must be `code`."""
    from raymb.cli import main

    own = {"hf_model_path": tiny_qwen2, "dataset": rows, "storage_path": sharing_rows(tmp_path)}

    def run(*overrides: str, code: int = 0, **flags: Any) -> Path:
        given = {**own, "experiment_name": "run"}
        assert main(["finetune", *overrides, *words_of({**given, **MAIN_FLAGS, **flags})]) == code
        return Path(flags.get("storage_path", tmp_path)) / flags.get("experiment_name", "run")

    return run


TP2 = {"num_workers": 2, "tensor_parallel_size": 2, "eval_interval": 10, "eval_at_start": True}


@pytest.fixture(scope="session")
def in_peace(ray_cluster: None, tiny_qwen2: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps with TP2 that nothing happens to, which several tests look at."""
    return run_in_peace(tmp_path_factory.mktemp("in-peace"), hf_model_path=tiny_qwen2, dataset=rows, **TP2)


def run_in_peace(storage: Path, **flags: Any) -> Path:
    """The directory of a run that ends well, in this process."""
    from raymb.cli import main

    given = {**MAIN_FLAGS, **flags, "storage_path": sharing_rows(storage), "experiment_name": "run"}
    assert main(["finetune", *words_of(given)]) == 0
    return storage / "run"


@pytest.fixture
def finetune_with_faults(finetune: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """The same with faults that happen in its workers (tests/faults)."""

    def run(*faults: dict[str, Any], **flags: Any) -> Path:
        file = tmp_path / f"faults-{flags.get('experiment_name', 'run')}.json"
        file.write_text(json.dumps(faults))
        env = [f"PYTHONPATH={FAULTS}{os.pathsep}src", f"RAYMB_FAULTS={file}"]
        directory = finetune(**{"env": env, **flags})
        happened = [number for number in range(len(faults)) if file.with_name(f"{file.name}.{number}").exists()]
        assert happened == list(range(len(faults))), "not every fault has happened"
        return directory

    return run


def read_metrics(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


CURVE = ("step", "loss", "grad_norm", "learning_rate", "trained_tokens")


def curve(run: Path) -> list[tuple[Any, ...]]:
    """Everything about a run's steps that must not change."""
    return [tuple(record[name] for name in CURVE) for record in read_metrics(run)]


def samples_of(run: Path, part: str) -> list[tuple[list[int], list[int]]]:
    """The (ids, trained) samples of a part of a run's rows, in their order."""
    job = json.loads((run / "job.json").read_text())
    rows = RowFile(Path(job["data_dir"], f"{part}.arrow"))
    return [(sample.ids, sample.trained) for sample in samples_in(rows)]


def batch_order(run: Path) -> list[list[int]]:
    """The rows of each of a run's steps. One epoch is enough here."""
    import torch

    job = json.loads((run / "job.json").read_text())
    rows = RowFile(Path(job["data_dir"], "train.arrow"))
    seed = job["spec"]["train"]["seed"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()  # Bridge's, epoch 0
    size = job["plan"]["global_batch_size"]
    assert job["plan"]["train_iters"] * size <= len(rows)
    return [order[start : start + size] for start in range(0, job["plan"]["train_iters"] * size, size)]


def batches_of(run: Path) -> list[list[tuple[list[int], list[int]]]]:
    """The (ids, trained) samples of each of a run's steps, packed ones taken apart."""
    steps = batch_order(run)
    rows = RowFile(Path(json.loads((run / "job.json").read_text())["data_dir"], "train.arrow"))
    samples: list[list[tuple[list[int], list[int]]]] = [[] for _ in range(len(rows))]
    for sample in samples_in(rows):
        samples[sample.row - 1].append((sample.ids, sample.trained))
    return [[sample for index in step for sample in samples[index]] for step in steps]


def worst_deviation(metrics: list[dict[str, Any]], oracle: list[dict[str, Any]]) -> float:
    """The largest relative difference of a loss or a gradient norm from the oracle's."""
    return max(
        abs(ours[name] - theirs[name]) / abs(theirs[name])
        for ours, theirs in zip(metrics, oracle, strict=True)
        for name in ("loss", "grad_norm")
    )


def make_job(storage: Path, *overrides: str, **flags: Any) -> Path:
    """job.json of a run on CPU workers, for those who train without Ray."""
    from raymb import launch
    from raymb.driver.cluster import Resources
    from raymb.driver.preflight import preflight
    from raymb.run.directory import RunDir
    from raymb.spec import load_spec

    given = {**MAIN_FLAGS, "export_hf": False, "experiment_name": "run", **flags, "storage_path": sharing_rows(storage)}
    known = {name: value for name, value in given.items() if value is not None}
    words = {name: value if isinstance(value, dict) else str(value) for name, value in known.items()}
    checked = preflight(load_spec(words, overrides=overrides))
    place = RunDir.of(checked.spec, "run")
    place.path.mkdir(parents=True)
    place.data.write_text(json.dumps(launch._data(checked)))
    place.job.write_text(
        launch.job_of(
            checked, {checked.plan.layout.num_workers: checked.plan}, "cpu", Resources(1.0, 0, 1), place
        ).to_json()
    )
    return place.job


@functools.cache
def _ranks() -> subprocess.Popen[str]:
    """The process that forks ranks (ranks.py); it ends with this one, which holds its input."""
    words, root = [sys.executable, "-m", "tests.smoke.ranks"], Path(__file__).parents[2]
    environment = {**os.environ, **forked.OF_SERVERS}
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)


def train_job(job: Path, workers: int) -> None:
    """Train a job of make_job on so many ranks, without Ray; what they said is shown when one fails."""
    ranks = _ranks()
    assert ranks.stdin is not None and ranks.stdout is not None
    print(json.dumps({"job": str(job), "workers": workers}), file=ranks.stdin, flush=True)
    try:
        code = ranks.stdout.readline().strip()
    except BaseException:  # a time limit
        ranks.kill()  # with which its ranks end
        _ranks.cache_clear()
        raise
    if code != "0":
        said = job.with_name("ranks.log").read_text(errors="replace")
        pytest.fail(f"exit code {code}\n{said[:6000]}\n...\n{said[-2000:]}")


def train_variant(out: Path, workers: int, *overrides: str, **flags: Any) -> list[dict[str, Any]]:
    """Train without Ray in `out`: the steps' records; the run is out/run."""
    job = make_job(out, *overrides, **{**flags, "num_workers": workers})
    train_job(job, workers)
    steps = read_metrics(job.parent)
    assert len(steps) == flags.get("train_iters", MAIN_FLAGS["train_iters"])
    return steps

"""Tokens are where they are used and nowhere else: not in Ray's logs and lists, not in the run's files, in no command
line, and in the environment of no process but the driver, which got them from the user, and the workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault_table import Row
from tests.hub import MODEL, Hub
from tests.smoke.conftest import MAIN_FLAGS, read_metrics, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(600)]
PLANTED = "planted4711"
SECRETS = {name: f"{PLANTED}-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MINE")}
COMMIT = "1" * 40
FINISHING = "ray::raymb finishes exports"
PROBE = """
import os
from pathlib import Path
from raymb.rank import progress
begin = progress.Progress.__init__
def watched(self):
    begin(self)
    names = sorted(name for name, value in os.environ.items() if value.startswith("planted4711"))
    Path(__file__).with_name(f"environment-{os.getpid()}").write_text(" ".join(names))
progress.Progress.__init__ = watched
"""
"""For the workers' PYTHONPATH: writes which variables have planted values when the training function begins."""


@pytest.fixture
def session() -> Iterator[Path]:
    place = tempfile.mkdtemp(prefix="rs-", dir="/tmp")  # short: it holds sockets
    yield Path(place)
    shutil.rmtree(place, ignore_errors=True)


def processes() -> Iterator[tuple[int, str, bool, bool]]:
    """(number, command line, whether that has a planted secret, whether the environment has one) of each process."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
        except OSError:
            continue
        yield (
            int(place.name),
            words.decode(errors="replace"),
            PLANTED.encode() in words,
            PLANTED.encode() in environment,
        )


def parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def may_have_them(process: int, owners: set[int]) -> bool:
    """Whether it is the driver, a worker or the task that finishes exports (a gated base model is loaded to verify an
    adapter), or a child of one of them that is none of Ray's own processes."""
    while process > 1:
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            return True  # gone meanwhile, and so it cannot be told
        if process in owners or FINISHING in words:
            return True
        if any(name in words for name in ("gcs_server", "raylet", "/ray/_private/", "/ray/dashboard/", "ray::")):
            return False
        process = parent_of(process)
    return False


def holding(directory: Path) -> list[str]:
    files = [file for file in directory.rglob("*") if file.is_file() and not file.is_symlink()]
    return [str(file.relative_to(directory)) for file in files if PLANTED.encode() in file.read_bytes()]


def test_where_planted_secrets_are(
    tiny_qwen2: Path, rows: Path, tmp_path: Path, session: Path, fault_table: list[Row]
) -> None:
    hub, runs = Hub({COMMIT: tiny_qwen2}, {"main": COMMIT}, SECRETS["HF_TOKEN"]), tmp_path / "runs"
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "sitecustomize.py").write_text(PROBE)
    flags = {"hf_model_path": MODEL, "dataset": rows, "storage_path": runs, "experiment_name": "run", "num_workers": 2}
    flags |= {"train_iters": 2, "peft": "lora"}
    flags["env"] = ["MINE", f"TYPED={PLANTED}-typed", f"PYTHONPATH={tmp_path / 'probe'}{os.pathsep}src"]
    # Ray writes what its state API and Ray Train's would show into the session directory.
    export = {"RAY_enable_export_api_write": "1", "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
    settings = {**os.environ, **SECRETS, **export, "PYTHONPATH": "src", "RAY_TMPDIR": str(session)}
    settings |= {"HF_HOME": str(tmp_path / "hf-home"), "HF_ENDPOINT": hub.endpoint}
    words, wrong, looked = [sys.executable, "-m", "raymb", "finetune", *words_of({**MAIN_FLAGS, **flags})], set(), 0
    with open(tmp_path / "said", "w") as said:
        driver = subprocess.Popen(words, env=settings, stdout=said, stderr=said)
        typed = time.monotonic() + 3
        while driver.poll() is None:
            workers = {int(file.name.rpartition("-")[2]) for file in (tmp_path / "probe").glob("environment-*")}
            owners = {driver.pid, *workers}
            for process, line, in_words, in_environment in processes():
                if in_words and process == driver.pid and time.monotonic() < typed:
                    continue  # the line that the user typed, until the program has begun
                if in_words or (in_environment and not may_have_them(process, owners)):
                    wrong.add(line.replace("\0", " ")[:200])
            looked += 1
            time.sleep(0.5)
    hub.close()
    text = (tmp_path / "said").read_text()
    assert driver.returncode == 0 and len(read_metrics(runs / "run")) == 2, text
    assert hub.fetched["model.safetensors"] == 1, "a worker has fetched the gated model"
    seen = [file.read_text().split() for file in (tmp_path / "probe").glob("environment-*")]
    assert seen == [sorted([*SECRETS, "TYPED"])] * 2, "both workers have them when their function begins"
    assert looked > 20 and wrong == set()
    assert PLANTED not in text and holding(runs) == []
    files = [file.name for file in session.rglob("*") if file.is_file()]
    assert {"gcs_server.out", "raylet.out"} <= set(files) and any("runtime_env" in name for name in files), files
    assert any(name.startswith("event_EXPORT") for name in files), files
    assert holding(session) == []
    outcome = "not in Ray's session directory, the run, the output or a command line; both workers have them"
    fault_table.append(Row("five planted secrets, one typed with --env", outcome))


CARRIED = """
import os, ray, sys
from pathlib import Path
from raymb.runtime.carried import Carried

@ray.remote
def task(variables, early):
    import fsspec
    return os.environ["MINE"], fsspec.filesystem("memory").storage_options

@ray.remote
class Actor:
    def __init__(self, policy): self.mine, self.shown = os.environ["MINE"], repr(policy)
    async def found(self): return self.mine, self.shown

ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
carried = Carried({"MINE": "swordfish", "FSSPEC_MEMORY_X": "swordfish"})
assert ray.get(task.remote([carried], 0)) == ("swordfish", {"x": "swordfish"}), "read when fsspec was imported, too"
assert ray.get(Actor.remote({"policy": carried}).found.remote()) == (
    "swordfish", "{'policy': Carried(FSSPEC_MEMORY_X, MINE)}")
assert "MINE" not in os.environ
ray.shutdown()
files = [file for file in Path(sys.argv[1]).rglob("*") if file.is_file()]
assert len(files) > 5 and not [file for file in files if b"swordfish" in file.read_bytes()]
print("done")
"""


def test_variables_arrive_in_tasks_and_actors_and_in_no_file_of_ray(session: Path, fault_table: list[Row]) -> None:
    settings = {**os.environ, "PYTHONPATH": "src"}
    words = [sys.executable, "-c", CARRIED, str(session)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, env=settings)
    assert done.stdout.endswith("done\n"), done.stderr
    fault_table.append(Row("secrets of tasks and actors", "in their environment, in no file of Ray's"))

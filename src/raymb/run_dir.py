"""A run's directory: every path that a run reads or writes, and who may use it.

STORAGE_PATH/EXPERIMENT_NAME/
    spec.json         what the user asked for, resolved; `--config spec.json` repeats the run
    plan.json         every size, with `auto` resolved
    metrics.jsonl     one object a line
    job.json          what the driver gave to every worker
    checkpoints/      Megatron checkpoints and `latest`   (or --output_dir)
        fingerprint.json  what they belong to: model, tokenizer, data, batch
    data.json         which prepared rows, and what they are like
    hf/               the tuned model as a Hugging Face directory
    logs/             one file a worker
    (and Ray Train's own small files)
    tensorboard/
    lock              held, and touched every few seconds, by the driver that runs
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb.errors import RunDirError
from raymb.spec import RunSpec, spec_to_json

_OWNER = re.compile(r"(?P<host>\S+) (?P<pid>\d+) (?P<start>\d+|-)\n")
_ITERATION = re.compile(r"iter_\d{7,}")
_POINTERS = ("latest", "latest_train_state.pt", "latest_checkpointed_iteration.txt")  # raymb's, Bridge's, Megatron's
_LOCK_IS_STALE_AFTER = 60.0  # seconds without a touch; a live driver touches it every few seconds


@dataclass(frozen=True)
class RunDir:
    path: Path
    checkpoints: Path

    @staticmethod
    def of(spec: RunSpec, name: str) -> RunDir:
        """The run directory of a spec.

        Args:
            name: used when the spec has no experiment_name.
        """
        path = (spec.run.storage_path / (spec.run.experiment_name or name)).expanduser().absolute()
        checkpoints = spec.checkpoint.output_dir
        return RunDir(path, checkpoints.expanduser().absolute() if checkpoints else path / "checkpoints")

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def fingerprint(self) -> Path:
        """Beside the checkpoints, so that a run that shares an --output_dir with another one is found out."""
        return self.checkpoints / "fingerprint.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def hf(self) -> Path:
        return self.path / "hf"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def ray_snapshot(self) -> Path:
        """Ray Train's list of the checkpoints that it was told of, which it reads again in a second fit()."""
        return self.path / "checkpoint_manager_snapshot.json"


def check_claim(run: RunDir, spec: RunSpec, fingerprint: dict[str, Any]) -> None:
    """Refuse, before anything starts, a directory that this run must not use. Changes nothing.

    Raises:
        RunDirError: in use by a live driver; used before and --resume never; or holding another run's state.
    """
    if _is_locked(run):
        raise RunDirError(
            f"{run.path} is in use by {_read_lock(run)}",
            "ways out: --experiment_name NEW_NAME, --storage_path ANOTHER_DIR, or end that run and go on with "
            "--resume auto",
        )
    _check_resume_path(spec.checkpoint.resume)
    if spec.checkpoint.overwrite:
        return
    ways_out = "--experiment_name NEW_NAME for a new run, --overwrite to delete this one"
    if spec.checkpoint.output_dir:
        ways_out = f"another --output_dir, {ways_out}"
    used = run.path if run.spec.exists() else run.checkpoints if _has_entries(run.checkpoints) else None
    if used and spec.checkpoint.resume == "never":
        raise RunDirError(f"{used} holds a run already", f"ways out: --resume auto to go on with it, {ways_out}")
    before = _read_fingerprint(run)
    now = _identity(run, fingerprint)
    different = [key for key in now if before is not None and before.get(key) != now[key]]
    if before is not None and different:
        listed = "; ".join(f"{key} was {before.get(key)!r}, is {now[key]!r}" for key in different)
        raise RunDirError(
            f"{run.fingerprint.parent} holds the checkpoints of another run: {listed}",
            f"ways out: the former value of --{different[0].split(':')[0]} to go on with it, {ways_out}",
        )


def _check_resume_path(resume: str) -> None:
    """--resume PATH must be a directory of checkpoints as Bridge writes them, or one of its iter_ directories."""
    if resume in ("auto", "never"):
        return
    path = Path(resume).expanduser()
    if not any((path / name).is_file() for name in ("latest_train_state.pt", "train_state.pt")):
        raise RunDirError(
            f"--resume {resume}: no checkpoint there (neither latest_train_state.pt nor train_state.pt)",
            "give a run's checkpoints/ directory or one of its iter_ directories, auto, or never",
        )


def claim(run: RunDir, spec: RunSpec, plan: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Take the directory and write what the run is.

    Raises:
        RunDirError: the place cannot be written, or another driver was faster.
    """
    made = [directory for directory in (run.path, *run.path.parents) if not directory.exists()]
    locked = False
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        _take_lock(run)
        locked = True
        run.ray_snapshot.unlink(missing_ok=True)  # Ray refuses to start when a checkpoint in it has been deleted
        if spec.checkpoint.overwrite:
            _delete_old_run(run)
        for directory in (run.checkpoints, run.logs):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomically(run.spec, spec_to_json(spec))
        write_atomically(run.plan, json.dumps(plan, indent=2) + "\n")
        write_atomically(run.fingerprint, json.dumps(_identity(run, fingerprint), indent=2) + "\n")
    except OSError as error:
        _take_back(run, made, locked)
        place, flag = run.path, "storage_path"
        if error.filename and not Path(error.filename).is_relative_to(run.path) and spec.checkpoint.output_dir:
            place, flag = run.checkpoints, "output_dir"
        raise RunDirError(f"cannot write {place}: {error.strerror or error}", f"give another --{flag}") from None


def touch_lock(run: RunDir) -> None:
    """Say that the driver lives. Called every few seconds."""
    with contextlib.suppress(OSError):
        os.utime(run.lock)


def release(run: RunDir) -> None:
    run.lock.unlink(missing_ok=True)


def write_atomically(file: Path, text: str) -> None:
    """The file has its old content or the new one, never a part."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _identity(run: RunDir, fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint; for checkpoints that lie elsewhere (--output_dir), with the name of the run that owns them."""
    if run.checkpoints.is_relative_to(run.path):
        return fingerprint
    return {**fingerprint, "experiment_name": run.path.name}


def _read_fingerprint(run: RunDir) -> dict[str, Any] | None:
    """What the checkpoints belong to; None when there is no file, {} when it cannot be read."""
    try:
        content = json.loads(run.fingerprint.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _take_back(run: RunDir, made: list[Path], locked: bool) -> None:
    """Remove what a failed claim made: the run directory if it is new, and the parents that nobody else uses."""
    if run.path in made:
        shutil.rmtree(run.path, ignore_errors=True)
    elif locked:
        release(run)
    for directory in made:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _take_lock(run: RunDir) -> None:
    if run.lock.exists() and not _is_locked(run):
        run.lock.unlink(missing_ok=True)
    try:
        with open(run.lock, "x", encoding="ascii") as file:
            file.write(f"{socket.gethostname()} {os.getpid()} {_start_of(os.getpid())}\n")
    except FileExistsError:
        raise RunDirError(f"{run.path} is in use by {_read_lock(run)}", "give another --experiment_name") from None


def _is_locked(run: RunDir) -> bool:
    """A lock counts while its driver touches it; on this host, while its process lives."""
    try:
        owner = _OWNER.fullmatch(run.lock.read_text(encoding="ascii", errors="replace"))
        age = time.time() - run.lock.stat().st_mtime
    except OSError:
        return False
    if owner is not None and owner["host"] == socket.gethostname():
        return process_lives(int(owner["pid"]), owner["start"])
    return age < _LOCK_IS_STALE_AFTER  # also one that is being written just now


def process_lives(pid: int, start: str = "-") -> bool:
    """Whether a process of this host runs, and began at `start` where that is known."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _start_of(pid)
    return now == start or "-" in (now, start)


def _start_of(pid: int) -> str:
    """When the process started, in ticks since boot; "-" where there is no /proc. A container that is started again
    has its old name and gives its driver the old number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "-"


def _read_lock(run: RunDir) -> str:
    with contextlib.suppress(OSError):
        owner = _OWNER.fullmatch(run.lock.read_text(encoding="ascii", errors="replace"))
        if owner is not None:
            return f"process {owner['pid']} on {owner['host']}"
    return "another run"


def _has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _delete_old_run(run: RunDir) -> None:
    """Delete what raymb makes, and nothing else: --output_dir may be a directory that holds more."""
    for name in _POINTERS:  # first: what they point at must be whole
        (run.checkpoints / name).unlink(missing_ok=True)
    steps = [path for path in run.checkpoints.glob("iter_*") if _ITERATION.fullmatch(path.name)]
    for directory in (run.hf, run.logs, run.tensorboard, *steps):
        shutil.rmtree(directory, ignore_errors=True)
    for file in (run.spec, run.plan, run.job, run.data, run.fingerprint, run.metrics):
        file.unlink(missing_ok=True)

"""A run's directory: every path that a run reads or writes, and who may use it.

STORAGE_PATH/EXPERIMENT_NAME/
    spec.json         what the user asked for, resolved; `--config spec.json` repeats the run
    plan.json         every size, with `auto` resolved
    fingerprint.json  what a checkpoint here belongs to: model, tokenizer, data, batch
    metrics.jsonl     one object a line
    checkpoints/      Megatron checkpoints and `latest`   (or --output_dir)
    data/             the rows as the workers read them
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
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb.errors import RunDirError
from raymb.spec import RunSpec, spec_to_json

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
    def fingerprint(self) -> Path:
        return self.path / "fingerprint.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def data(self) -> Path:
        return self.path / "data"

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
    if spec.checkpoint.overwrite:
        return
    used = run.spec.exists() or _has_entries(run.checkpoints)
    ways_out = "--experiment_name NEW_NAME for a new run, --overwrite to delete this one"
    if used and spec.checkpoint.resume == "never":
        raise RunDirError(f"{run.path} holds a run already", f"ways out: --resume auto to go on with it, {ways_out}")
    if used and run.fingerprint.exists():
        before = json.loads(run.fingerprint.read_text(encoding="utf-8"))
        different = [key for key in fingerprint if before.get(key) != fingerprint[key]]
        if different:
            listed = "; ".join(f"{key} was {before.get(key)!r}, is {fingerprint[key]!r}" for key in different)
            raise RunDirError(
                f"{run.path} holds another run: {listed}",
                f"ways out: the former value of --{different[0].split(':')[0]} to go on with it, {ways_out}",
            )


def claim(run: RunDir, spec: RunSpec, plan: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Take the directory and write what the run is.

    Raises:
        RunDirError: the place cannot be written, or another driver was faster.
    """
    made = next((parent for parent in reversed([run.path, *run.path.parents]) if not parent.exists()), None)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        _take_lock(run)
        if spec.checkpoint.overwrite:
            _delete_old_run(run)
        for directory in (run.checkpoints, run.logs, run.data):
            directory.mkdir(parents=True, exist_ok=True)
        write_atomically(run.spec, spec_to_json(spec))
        write_atomically(run.plan, json.dumps(plan, indent=2) + "\n")
        write_atomically(run.fingerprint, json.dumps(fingerprint, indent=2) + "\n")
    except OSError as error:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        flag = "output_dir" if spec.checkpoint.output_dir else "storage_path"
        raise RunDirError(
            f"cannot write the run directory {run.path}: {error.strerror or error}", f"give another --{flag}"
        ) from None


def touch_lock(run: RunDir) -> None:
    """Say that the driver lives. Called every few seconds."""
    with contextlib.suppress(OSError):
        os.utime(run.lock)


def release(run: RunDir) -> None:
    run.lock.unlink(missing_ok=True)


def write_atomically(file: Path, text: str) -> None:
    """The file has its old content or the new one, never a part."""
    temporary = file.with_name(f".{file.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def _take_lock(run: RunDir) -> None:
    if run.lock.exists() and not _is_locked(run):
        run.lock.unlink(missing_ok=True)
    try:
        with open(run.lock, "x", encoding="ascii") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}\n")
    except FileExistsError:
        raise RunDirError(f"{run.path} is in use by {_read_lock(run)}", "give another --experiment_name") from None


def _is_locked(run: RunDir) -> bool:
    """A lock counts while its driver touches it; on this host, while its process lives."""
    try:
        host, pid = run.lock.read_text(encoding="ascii").split()
        age = time.time() - run.lock.stat().st_mtime
    except (OSError, ValueError):
        return False
    if host == socket.gethostname():
        return _process_lives(int(pid))
    return age < _LOCK_IS_STALE_AFTER


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read_lock(run: RunDir) -> str:
    with contextlib.suppress(OSError, ValueError):
        host, pid = run.lock.read_text(encoding="ascii").split()
        return f"process {pid} on {host}"
    return "another run"


def _has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _delete_old_run(run: RunDir) -> None:
    """Delete what raymb makes, and nothing else: --output_dir may be a directory that holds more."""
    for directory in (run.data, run.hf, run.logs, run.tensorboard, *run.checkpoints.glob("iter_*")):
        shutil.rmtree(directory, ignore_errors=True)
    for file in (run.spec, run.plan, run.fingerprint, run.metrics, *run.checkpoints.glob("latest*")):
        file.unlink(missing_ok=True)

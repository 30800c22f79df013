"""A run's directory: every path that a run reads or writes, and who may use it.

STORAGE_PATH/EXPERIMENT_NAME/
    spec.json         what the user asked for, resolved; `--config spec.json` repeats the run
    plan.json         every size, with `auto` resolved
    metrics.jsonl     one object a line
    events.jsonl      starts, failures, checkpoints and ends, with their times
    answers.jsonl     what the models said to --sample_prompt
    trackers.json     which W&B and MLflow runs it is
    job.json          what the driver gave to every worker
    checkpoints/      Megatron checkpoints and `latest`   (or --output_dir)
        fingerprint.json  what they belong to: model, tokenizer, data, batch, seed, versions
    startup.json      where the seconds went before the first step ended
    data.json         which prepared rows, and what they are like
    hf/               the tuned model as a Hugging Face directory
    adapter/          the tuned adapters (--peft) as a PEFT directory
    hf-step-50/, adapter-step-50/   those of --save_hf_interval; hf-failed/: what its verification did not pass
    profile/          traces of --profile_steps
    evaluation/       what `raymb evaluate` wrote
    logs/             one file a worker
    (and Ray Train's own small files)
    tensorboard/
    lock              held, and touched every few seconds, by the driver that runs
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymb.errors import RunDirError
from raymb.run.fingerprint import Fingerprint, described, differences, ways_to_resume
from raymb.spec import RunSpec, spec_to_json
from raymb.storage import lock
from raymb.storage.files import write_atomically
from raymb.storage.remote import Remote, storage_root

ITERATION = re.compile(r"iter_(\d{7,})")
MANIFEST = "manifest.json"
"""Of an iteration directory: written last, and a checkpoint counts when all that it lists is whole."""
REJECTED = "rejected.json"
"""What the manifest of a checkpoint that was found damaged is called from then on: such a checkpoint does not count."""
RESHAPED = "reshaped"
"""Of the checkpoints: those that were resharded for another layout."""
_MADE = re.compile(
    r"(hf|adapter)(-step-\d+)?(-failed)?|logs|tensorboard|failures|profile|evaluation|wandb|"
    r"(spec|plan|job|data|trackers|startup)\.json|(metrics|events|answers)\.jsonl|report.*\.html"
)
POINTERS = ("latest", "best", "latest_train_state.pt", "latest_checkpointed_iteration.txt")
"""raymb's, Bridge's and Megatron's files that name a checkpoint."""
LEFT_OUT = "left_out_steps.json"
"""The steps that --bad_loss rollback leaves out."""


@dataclass(frozen=True)
class RunDir:
    """
    Args:
        path: the run directory on this machine.
        remote: what it mirrors, if --storage_path is a URI.
    """

    path: Path
    checkpoints: Path
    remote: Remote | None = None

    @staticmethod
    def of(spec: RunSpec, name: str) -> RunDir:
        """The run directory of a spec.

        Args:
            name: used when the spec has no experiment_name.
        """
        storage, name = spec.run.storage_path, spec.run.experiment_name or name
        path, output_dir = storage_root(storage) / name, spec.checkpoint.output_dir
        checkpoints = output_dir.expanduser().absolute() if output_dir else path / "checkpoints"
        return RunDir(path, checkpoints, Remote.of(storage, name))

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
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def startup(self) -> Path:
        return self.path / "startup.json"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def trackers(self) -> Path:
        return self.path / "trackers.json"

    @property
    def hf(self) -> Path:
        return self.path / "hf"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def failures(self) -> Path:
        return self.path / "failures"

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


def check_claim(run: RunDir, spec: RunSpec, fingerprint: Fingerprint) -> None:
    """Refuse, before anything starts, a directory that this run must not use. Changes nothing.

    Raises:
        RunDirError: in use by a live driver; used before and --resume never; or holding another run's state.
    """
    if lock.is_held(run.lock):
        raise RunDirError(
            f"{run.path} is in use by {lock.owner(run.lock)}",
            "ways out: --experiment_name NEW_NAME, --storage_path ANOTHER_DIR, or end that run and resume with "
            "--resume auto",
        )
    _check_resume_path(spec, fingerprint)
    if spec.checkpoint.overwrite:
        return
    ways_out = "--experiment_name NEW_NAME for a new run, --overwrite to delete this one"
    if spec.checkpoint.output_dir:
        ways_out = f"another --output_dir, {ways_out}"
    used = run.path if run.spec.exists() else run.checkpoints if _has_entries(run.checkpoints) else None
    if used and spec.checkpoint.resume == "never":
        raise RunDirError(f"{used} holds a run already", f"ways out: --resume auto to resume it, {ways_out}")
    before = read_object(run.fingerprint)
    if before is None:
        return
    if not before:
        raise RunDirError(
            f"{run.fingerprint} cannot be read: nobody knows whose checkpoints these are", f"ways out: {ways_out}"
        )
    changes = differences(before, _identity(run, fingerprint))
    refused = [one for one in changes if one.group not in spec.checkpoint.accept_changes]
    if refused:
        raise RunDirError(
            f"{run.checkpoints} holds the checkpoints of another run:\n{described(refused)}",
            f"ways out: {'; '.join(ways_to_resume(refused))}; {ways_out}",
        )


def _check_resume_path(spec: RunSpec, fingerprint: Fingerprint) -> None:
    """--resume PATH must be a directory of checkpoints as Bridge writes them, or one of its iter_ directories, and of
    this model and tokenizer as far as it says; it may have seen other data."""
    resume = spec.checkpoint.resume
    if resume in ("auto", "never"):
        return
    path = Path(resume).expanduser()
    if not any((path / name).is_file() for name in ("latest_train_state.pt", "train_state.pt")):
        raise RunDirError(
            f"--resume {resume}: no checkpoint there (neither latest_train_state.pt nor train_state.pt)",
            "give a run's checkpoints/ directory or one of its iter_ directories, auto, or never",
        )
    before = read_object(path / "fingerprint.json") or read_object(path.parent / "fingerprint.json") or {}
    groups = {group: before[group] for group in ("model", "tokenizer") if isinstance(before.get(group), dict)}
    changes = differences(groups, {group: fingerprint[group] for group in groups})
    refused = [one for one in changes if one.group not in spec.checkpoint.accept_changes]
    if refused:
        raise RunDirError(
            f"--resume {resume} holds checkpoints of another model:\n{described(refused)}",
            f"ways out: {'; '.join(ways_to_resume(refused))}; another checkpoint",
        )


def claim(run: RunDir, spec: RunSpec, plan: dict[str, Any], fingerprint: Fingerprint) -> None:
    """Take the directory and write what the run is.

    Raises:
        RunDirError: the place cannot be written, or another driver was faster.
    """
    created = [directory for directory in (run.path, *run.path.parents) if not directory.exists()]
    locked = False
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        if not lock.take(run.lock):
            raise RunDirError(f"{run.path} is in use by {lock.owner(run.lock)}", "give another --experiment_name")
        locked = True
        if spec.checkpoint.overwrite:
            _delete_old_run(run)
        for directory in (run.checkpoints, run.logs):
            directory.mkdir(parents=True, exist_ok=True)
        describe(run, spec, plan)
        write_atomically(run.fingerprint, json.dumps(_identity(run, fingerprint), indent=2) + "\n")
    except OSError as error:
        _take_back(run, created, locked)
        place, flag = run.path, "storage_path"
        if error.filename and not Path(error.filename).is_relative_to(run.path) and spec.checkpoint.output_dir:
            place, flag = run.checkpoints, "output_dir"
        raise RunDirError(f"cannot write {place}: {error.strerror or error}", f"give another --{flag}") from None


def describe(run: RunDir, spec: RunSpec, plan: dict[str, Any]) -> None:
    """Write what the run is."""
    write_atomically(run.spec, spec_to_json(spec))
    write_atomically(run.plan, json.dumps(plan, indent=2) + "\n")


def touch_lock(run: RunDir) -> bool:
    """Say that the driver lives, every few seconds; False if the run is another driver's by now."""
    return lock.touch(run.lock)


def release(run: RunDir) -> None:
    lock.release(run.lock)


def read_object(file: Path) -> dict[str, Any] | None:
    """A JSON object that a run wrote; None when there is no file, {} when it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_iteration(path: str | Path) -> bool:
    return ITERATION.fullmatch(Path(path).name) is not None


def _identity(run: RunDir, fingerprint: Fingerprint) -> Fingerprint:
    """The fingerprint; for checkpoints that lie elsewhere (--output_dir), with the name of the run that owns them."""
    if run.checkpoints.is_relative_to(run.path):
        return fingerprint
    return {**fingerprint, "run": {"experiment_name": run.path.name}}


def _take_back(run: RunDir, created: list[Path], locked: bool) -> None:
    """Remove what a failed claim made: the run directory if it is new, and the parents that nobody else uses."""
    if run.path in created:
        shutil.rmtree(run.path, ignore_errors=True)
    elif locked:
        release(run)
    for directory in created:
        with contextlib.suppress(OSError):
            directory.rmdir()


def _has_entries(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def made_in_run(names: Iterable[str]) -> list[str]:
    """Those of the names in a run directory that raymb makes, which --overwrite deletes."""
    return [name for name in names if _MADE.fullmatch(name)]


def made_in_checkpoints(names: Sequence[str]) -> list[str]:
    """The same beside a run's checkpoints, where others may have something, too (--output_dir). The pointers come
    first: what they point at must be whole."""
    first = [name for name in names if name in (*POINTERS, LEFT_OUT)]
    return first + [name for name in names if name in (RESHAPED, "fingerprint.json") or is_iteration(name)]


def _delete_old_run(run: RunDir) -> None:
    for home, made in ((run.checkpoints, made_in_checkpoints), (run.path, made_in_run)):
        for name in made([path.name for path in home.iterdir()] if home.is_dir() else []):
            if (home / name).is_dir():
                shutil.rmtree(home / name, ignore_errors=True)
            else:
                (home / name).unlink(missing_ok=True)

"""Checkpoints of a run on remote storage. Each rank uploads what it wrote; then come the manifest and the pointers.

What is whole is decided by the manifests at the URI: a machine has the parts that its own ranks wrote, and no other's.
Content is decided by the SHA-256 of each file, by the machine that has it: a file of the same name and size may be left
of an earlier run. No torch is imported: the driver reads them, too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.manifest import Manifests
from raymb.errors import StorageError
from raymb.run.directory import REJECTED, RunDir
from raymb.run.job import Job
from raymb.storage.files import write_atomically
from raymb.storage.remote import Remote
from raymb.storage.transfer import WrongSize, side_by_side, size_of

type Files = dict[str, dict[str, Any]]
"""A manifest's entries, by name."""


class RemoteCheckpoints:
    """The checkpoints at a URI, and the directories that stand for them on this machine. Those of its methods that
    raymb.checkpoints.manifest has too answer the same question, of what is at the URI.

    Args:
        remote: the run's URI.
        run_dir: the run's directory in this machine's workspace.
    """

    def __init__(self, remote: Remote, run_dir: str | Path):
        self.remote, self.run_dir = remote, Path(run_dir)
        self.known: dict[str, dict[str, Any]] = {}
        self.verified: set[Path] = set()

    @staticmethod
    def of(job: Job) -> RemoteCheckpoints | None:
        """None for a run on a file system, or with checkpoints elsewhere (--output_dir)."""
        remote = Remote.of(job.spec.run.storage_path, Path(job.run_dir).name)
        return RemoteCheckpoints.of_run(RunDir(Path(job.run_dir), Path(job.checkpoint_dir), remote))

    @staticmethod
    def of_run(run: RunDir) -> RemoteCheckpoints | None:
        """The same from a run's directory."""
        inside = run.checkpoints.is_relative_to(run.path)
        return RemoteCheckpoints(run.remote, run.path) if run.remote is not None and inside else None

    # What is there

    def holds(self, directory: str | Path) -> bool:
        """Whether a checkpoint of this machine stands for one at the URI."""
        return Path(directory).is_relative_to(self.run_dir)

    def manifest(self, directory: str | Path) -> dict[str, Any] | None:
        return checkpoint.parse_manifest(self.remote.read(f"{self._name(directory)}/{checkpoint.MANIFEST}"))

    def steps_of(self, checkpoint_dir: str | Path) -> list[int]:
        return checkpoint.steps_in(self.remote.listing(self._name(checkpoint_dir)))

    def whole(self, checkpoint_dir: str | Path) -> Manifests:
        """The manifests there. They are read once: nobody else writes there while this run has it."""
        steps = self.steps_of(checkpoint_dir)
        names = {step: checkpoint.iteration_dir(checkpoint_dir, step) for step in steps}
        unknown = [one for one in names.values() if one not in self.known]
        found = zip(unknown, side_by_side(self.manifest, unknown), strict=True)
        self.known |= {one: manifest for one, manifest in found if manifest is not None}
        return {step: self.known[one] for step, one in names.items() if one in self.known}

    def latest_step(self, checkpoint_dir: str | Path) -> int | None:
        steps = self.steps_of(checkpoint_dir)
        return next((step for step in steps if self.manifest(checkpoint.iteration_dir(checkpoint_dir, step))), None)

    def candidates(self, checkpoint_dir: str | Path) -> list[str]:
        """Iteration directories that have a manifest at the URI, in the order of checkpoint.candidates."""
        directories = checkpoint.own_candidates(checkpoint_dir, self.steps_of)
        there = side_by_side(lambda one: self.remote.exists(f"{self._name(one)}/{checkpoint.MANIFEST}"), directories)
        return [directory for directory, whole in zip(directories, there, strict=True) if whole]

    # To this machine

    def begin(self, directory: str) -> None:
        """Have a checkpoint's manifest on this machine, and nothing that belongs to another checkpoint of its name."""
        there, here = self.manifest(directory), checkpoint.read_manifest(directory)
        if there is None or (here is not None and here["files"] != there["files"]):
            shutil.rmtree(directory, ignore_errors=True)
        if there is not None:
            Path(directory).mkdir(parents=True, exist_ok=True)
            checkpoint.write_manifest(directory, there["files"], {**there, "files": None})

    def have(self, directory: str, files: Files) -> str:
        """Have files of a checkpoint on this machine.

        Returns:
            what is wrong with one of them at the URI, "" if nothing is.

        Raises:
            StorageError: the storage fails, which says nothing of the checkpoint.
        """
        files = {name: entry for name, entry in files.items() if Path(directory, name) not in self.verified}
        sizes = {name: entry["bytes"] for name, entry in files.items()}
        here = {name: entry for name, entry in files.items() if size_of(Path(directory, name)) == sizes[name]}
        _deleted(directory, checkpoint.wrong_files(directory, here))
        wrong: dict[str, str] = {}
        for _ in range(2):  # what arrives damaged may be whole at the URI
            try:
                fetched = self.remote.fetch_missing(self._name(directory), Path(directory), sizes)
            except StorageError as error:
                if isinstance(error.__cause__, FileNotFoundError | WrongSize):
                    return error.message
                raise
            wrong = _deleted(directory, checkpoint.wrong_files(directory, {name: files[name] for name in fetched}))
            if not wrong:
                break
        self.verified |= {Path(directory, name) for name in files if name not in wrong}
        return next(iter(wrong.values()), "")

    def fetch_here(self, directory: str) -> None:
        """Have a whole checkpoint on this machine.

        Raises:
            StorageError: it is damaged, or out of reach.
        """
        self.begin(directory)
        manifest = checkpoint.read_manifest(directory)
        problem = self.have(directory, manifest["files"]) if manifest else f"no {checkpoint.MANIFEST}"
        if problem:
            raise StorageError(f"{self.remote.url}/{self._name(directory)} is not whole: {problem}")

    def bring(self, checkpoint_dir: str, name: str) -> None:
        """A small file that lies beside the checkpoints, to this machine."""
        file = Path(checkpoint_dir, name)
        text = self.remote.read_text(self._name(file))
        if text is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)

    # To the URI

    def upload(self, files: Iterable[Path]) -> None:
        side_by_side(lambda file: self.remote.upload(file, self._name(file)), list(files))

    def finish(self, directory: Path, written: Iterable[str]) -> None:
        """Upload what no rank has uploaded, and the manifest last."""
        known = {*written, checkpoint.MANIFEST}
        self.upload(path for path in directory.iterdir() if path.is_file() and path.name not in known)
        self.known.pop(str(directory), None)
        self.upload([directory / checkpoint.MANIFEST])

    def upload_model(self, directory: Path) -> None:
        """An exported model or adapter, its configuration last: it is there when that is."""
        last = next(file for name in _CONFIGURATIONS if (file := directory / name).is_file())
        self.upload(path for path in directory.rglob("*") if path.is_file() and path != last)
        self.upload([last])

    def has_model(self, directory: str | Path) -> bool:
        """Whether an exported model or adapter is there."""
        return any(self.remote.exists(f"{self._name(directory)}/{name}") for name in _CONFIGURATIONS)

    # What no longer counts

    def reject(self, directory: str, problem: str) -> None:
        name = self._name(directory)
        text = self.remote.read_text(f"{name}/{checkpoint.MANIFEST}") or json.dumps({"problem": problem})
        self.remote.write_text(f"{name}/{REJECTED}", text)
        self.remote.delete(f"{name}/{checkpoint.MANIFEST}")
        checkpoint.reject(directory, problem)

    def delete(self, directory: str | Path) -> None:
        """At the URI and on this machine."""
        self.known.pop(str(directory), None)
        self.remote.delete(f"{self._name(directory)}/{checkpoint.MANIFEST}")  # first: half of it must not count
        self.remote.delete(self._name(directory))
        shutil.rmtree(directory, ignore_errors=True)

    def delete_old(
        self, checkpoint_dir: str | Path, keep_last: int | None, keep_best: int | None, in_use: Iterable[int] = ()
    ) -> list[int]:
        manifests, again = self.whole(checkpoint_dir), checkpoint.reshaped(checkpoint_dir)
        newest, reshaped = checkpoint.latest_of(manifests), self.steps_of(again)
        if newest is not None and reshaped and reshaped[0] < newest:
            for step in reshaped:
                self.delete(checkpoint.iteration_dir(again, step))
            self.remote.delete(self._name(again))
        gone = checkpoint.old_steps(self.steps_of(checkpoint_dir), manifests, keep_last, keep_best, in_use)
        for step in gone:
            self.delete(checkpoint.iteration_dir(checkpoint_dir, step))
        return gone

    def forget_old(self, checkpoint_dir: str | Path, step: int) -> None:
        """Delete on this machine what is no longer at the URI and older than a step: the machine with rank 0 deletes
        there, and each its own parts."""
        there = self.steps_of(checkpoint_dir)
        for old in checkpoint.steps_of(checkpoint_dir):
            if old < step and old not in there:
                shutil.rmtree(checkpoint.iteration_dir(checkpoint_dir, old), ignore_errors=True)

    def _name(self, path: str | Path) -> str:
        return Path(path).relative_to(self.run_dir).as_posix()


def candidates(checkpoint_dir: str | Path, resume: str, remote: RemoteCheckpoints | None) -> list[str]:
    """checkpoint.candidates, where the run's own may be at a URI."""
    here = checkpoint.candidates(checkpoint_dir, resume)
    if remote is None:
        return here
    return [*remote.candidates(checkpoint_dir), *(one for one in here if not remote.holds(one))]


def manifest_of(directory: str | Path, remote: RemoteCheckpoints | None) -> dict[str, Any] | None:
    """checkpoint.read_manifest, where the run's own may be at a URI."""
    return remote.manifest(directory) if remote and remote.holds(directory) else checkpoint.read_manifest(directory)


_CONFIGURATIONS = ("config.json", "adapter_config.json")


def _deleted(directory: str, wrong: dict[str, str]) -> dict[str, str]:
    for name in wrong:
        Path(directory, name).unlink(missing_ok=True)
    return wrong

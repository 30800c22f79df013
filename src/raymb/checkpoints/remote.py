"""Checkpoints of a run on remote storage. Each rank uploads what it wrote; then come the manifest and the pointers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist

from raymb.checkpoints import manifest as checkpoint
from raymb.run.directory import REJECTED
from raymb.run.job import Job
from raymb.storage.files import write_atomically
from raymb.storage.remote import Remote
from raymb.storage.transfer import side_by_side


class RemoteCheckpoints:
    """The checkpoints at a URI, and the directories that stand for them on this machine.

    Args:
        remote: the run's URI.
        run_dir: the run's directory in this machine's workspace.
    """

    def __init__(self, remote: Remote, run_dir: str):
        self.remote, self.run_dir = remote, Path(run_dir)

    @staticmethod
    def of(job: Job) -> RemoteCheckpoints | None:
        """None for a run on a file system, or with checkpoints elsewhere (--output_dir)."""
        remote = Remote.of(job.spec.run.storage_path, Path(job.run_dir).name)
        inside = Path(job.checkpoint_dir).is_relative_to(job.run_dir)
        return RemoteCheckpoints(remote, job.run_dir) if remote is not None and inside else None

    def candidates(self, checkpoint_dir: str) -> list[str]:
        """Iteration directories that have a manifest at the URI, in the order of checkpoint.candidates."""
        directories = checkpoint.own_candidates(
            checkpoint_dir, lambda home: checkpoint.steps_in(self.remote.listing(self._name(home)))
        )
        there = side_by_side(lambda one: self.remote.exists(f"{self._name(one)}/{checkpoint.MANIFEST}"), directories)
        return [directory for directory, whole in zip(directories, there, strict=True) if whole]

    def fetch(self, directory: str) -> None:
        """Have a checkpoint on every machine. Collective; one rank of each downloads what is missing there."""
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            self.fetch_here(directory)
        dist.barrier()

    def fetch_here(self, directory: str) -> None:
        """Have a checkpoint on this machine."""
        manifest = json.loads(self.remote.read_text(f"{self._name(directory)}/{checkpoint.MANIFEST}") or "{}")
        here = checkpoint.read_manifest(directory)
        if here is not None and here["files"] != manifest.get("files"):
            shutil.rmtree(directory)  # of the same name, but another one
        sizes = {name: entry["bytes"] for name, entry in manifest.get("files", {}).items()}
        self.remote.fetch_missing(self._name(directory), Path(directory), sizes)
        checkpoint.write_manifest(directory, manifest.pop("files"), manifest)

    def bring(self, checkpoint_dir: str, name: str) -> None:
        """A small file that lies beside the checkpoints, to this machine."""
        file = Path(checkpoint_dir, name)
        text = self.remote.read_text(self._name(file))
        if text is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)

    def reject(self, directory: str, problem: str) -> None:
        """checkpoint.reject at the URI. Called by one rank."""
        name = self._name(directory)
        text = self.remote.read_text(f"{name}/{checkpoint.MANIFEST}") or json.dumps({"problem": problem})
        self.remote.write_text(f"{name}/{REJECTED}", text)
        self.remote.delete(f"{name}/{checkpoint.MANIFEST}")
        checkpoint.reject(directory, problem)

    def upload(self, files: Iterable[Path]) -> None:
        side_by_side(lambda file: self.remote.upload(file, self._name(file)), list(files))

    def finish(self, directory: Path, written: Iterable[str]) -> None:
        """Upload what no rank has uploaded, and the manifest last."""
        known = {*written, checkpoint.MANIFEST}
        self.upload(path for path in directory.iterdir() if path.is_file() and path.name not in known)
        self.upload([directory / checkpoint.MANIFEST])

    def upload_model(self, directory: Path) -> None:
        """An exported model or adapter, its configuration last: it is there when that is."""
        last = next(file for name in ("config.json", "adapter_config.json") if (file := directory / name).is_file())
        self.upload(path for path in directory.rglob("*") if path.is_file() and path != last)
        self.upload([last])

    def delete(self, directories: Iterable[Path]) -> None:
        for directory in directories:
            self.remote.delete(f"{self._name(directory)}/{checkpoint.MANIFEST}")  # first: half of it must not count
            self.remote.delete(self._name(directory))

    def _name(self, path: str | Path) -> str:
        return Path(path).relative_to(self.run_dir).as_posix()

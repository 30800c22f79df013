"""RUN_OR_DIR: the model that a user means, and the one that it was tuned from. No framework."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raymb.errors import ModelError, RunDirError
from raymb.model.files import HUB_ID, base_directory
from raymb.run.directory import read_object


@dataclass(frozen=True)
class TunedModel:
    """
    Args:
        path: what transformers loads: a Hugging Face directory, a PEFT directory (which names its base), or a hub id.
        base: the model that it was tuned from, a directory or a hub id; None if nobody says.
        revision: the commit of a base on a hub, where it is known.
        run: the run that wrote it; None for a directory of another origin.
        adapter: whether path is a PEFT directory.
        trust_remote_code: whether the user lets code of the model's repository run. What the run had says nothing: its
            directory may come from somebody else.
    """

    path: str
    base: str | None
    run: Path | None = None
    adapter: bool = False
    trust_remote_code: bool = False
    revision: str | None = None

    def files(self) -> str:
        """The directory of `path`; of a hub model in the Hugging Face cache.

        Raises:
            ModelError: it cannot be had.
        """
        return _directory(self.path, None)

    def base_files(self) -> str:
        """The directory of the base; of a hub model in the Hugging Face cache, at its commit.

        Raises:
            ModelError: it cannot be had.
        """
        return _directory(str(self.base), self.revision)

    @property
    def data(self) -> dict[str, Any]:
        """The manifest of the rows that the run was trained on, with their `path`; {} without a run."""
        return (self.run and read_object(self.run / "data.json")) or {}


def _directory(name: str, revision: str | None) -> str:
    try:
        return base_directory(name, revision)
    except ModelError as error:
        reason = error.message.partition(": ")[2]
        raise ModelError(f"{name} cannot be loaded ({reason})", error.hint) from None


def find_tuned_model(name: str, base: str | None = None, trust_remote_code: bool = False) -> TunedModel:
    """
    Args:
        name: a run directory, a Hugging Face directory, a PEFT directory, or a hub id.
        base: what the user says it was tuned from.
        trust_remote_code: --trust_remote_code of this command.

    Raises:
        RunDirError: it is none of these, or a run that has exported nothing.
    """
    return replace(_found(name, base), trust_remote_code=trust_remote_code)


def _found(name: str, base: str | None) -> TunedModel:
    path = Path(name).expanduser().absolute()
    if (path / "job.json").exists():
        return _of_run(path, base)
    if (path / "adapter_config.json").exists():
        return _adapter(path, base)
    if (path / "config.json").exists():
        return TunedModel(str(path), base)
    if not path.exists() and HUB_ID.fullmatch(name):
        return TunedModel(name, base)
    problem = (
        "has no job.json (a run), config.json (a model) or adapter_config.json" if path.exists() else "is not there"
    )
    raise RunDirError(f"{name} {problem}", "give a run directory, a Hugging Face or PEFT directory, or a hub id")


def _of_run(run: Path, base: str | None) -> TunedModel:
    job = read_object(run / "job.json") or {}
    model = job.get("spec", {}).get("model", {})
    revision = None if base else model.get("hf_revision")
    base = base or job.get("model_path")
    if (run / "hf" / "config.json").exists():
        return TunedModel(str(run / "hf"), base, run, revision=revision)
    if (run / "adapter" / "adapter_config.json").exists():
        return TunedModel(str(run / "adapter"), base, run, True, revision=revision)
    raise RunDirError(f"{run} has neither hf/ nor adapter/", f"write it: raymb export {run}")


def _adapter(path: Path, base: str | None) -> TunedModel:
    config = read_object(path / "adapter_config.json") or {}
    run = path.parent if (path.parent / "job.json").exists() else None
    revision = None if base else config.get("revision")
    return TunedModel(str(path), base or config.get("base_model_name_or_path"), run, True, revision=revision)

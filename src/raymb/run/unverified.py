"""An export that is written and not verified yet: what the ranks hand to those who verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from raymb.errors import RunFailed


@dataclass(frozen=True)
class VerificationRequest:
    """
    Args:
        base: directory of the model that the training started from.
        model, adapter: directories to check; "" for none.
        reference: file of raymb.bridge.reference.write_reference.
        precision: that the reference was computed in: fp32 or bf16.
        chat_template: the text that the export must have; None for the base's.
    """

    base: str
    model: str
    adapter: str
    reference: str
    precision: str
    trust_remote_code: bool
    chat_template: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class UnverifiedExport:
    """Directories that are not verified yet.

    Args:
        directories: where each is to be, to where it is.
        request: what the verification is to look at.
        threads: that it may use.
        merge: --export_dtype of the merged model, which has yet to be made of the base and the adapter; None for none.
    """

    directories: dict[Path, Path]
    request: VerificationRequest
    threads: int
    merge: str | None = None


@dataclass(frozen=True)
class LeftToExport:
    """What is left to do of a run's exports when its training has ended, on the machine that has its files: nothing
    that needs its workers.

    Args:
        step: the last one.
        written: what the workers have written of it; None to export a checkpoint.
    """

    step: int
    written: UnverifiedExport | None


@contextmanager
def or_nothing(paths: list[Path]) -> Iterator[None]:
    """Write to these files and directories, or leave none of them.

    Raises:
        RunFailed: the file system does not take it.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        raise RunFailed(
            f"the export cannot be written to {paths[0].parent}: {error}",
            "make room there, or take another place (raymb export RUN --to DIR); checkpoints and former exports stay",
        ) from error

"""An export that is written and not verified yet: what the ranks hand to those who verify."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


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
    """

    directories: dict[Path, Path]
    request: VerificationRequest
    threads: int

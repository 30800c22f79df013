"""A file of another tool as raymb's: flags with where they come from, and what has no equal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from raymb.spec.sections import SECTION_OF_FLAG, SECTIONS


@dataclass
class Translation:
    """
    Args:
        workers: how many there will be; None where nobody has said so.
        flags: flag to value.
        origins: flag to the key that it comes from.
        left_out: (key, value, why) of what has no equal.
    """

    workers: int | None = None
    flags: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    left_out: list[tuple[str, Any, str]] = field(default_factory=list)

    def set(self, flag: str, value: Any, origin: str) -> None:
        """Take a value over, if it is one that the flag has."""
        section = SECTION_OF_FLAG[flag]
        needed = {"hf_model_path": "needed"} if section == "model" else {}
        try:
            checked = SECTIONS[section].model_validate({**needed, flag: value})
        except ValidationError:
            self.leave_out(origin, value, f"--{flag} has no such value")
            return
        self.flags[flag] = checked.model_dump(mode="json")[flag]
        self.origins[flag] = origin

    def leave_out(self, name: str, value: Any, why: str) -> None:
        self.left_out.append((name, value, why))

    def drop(self, flag: str, why: str) -> None:
        """Leave out a flag that was taken over."""
        if flag in self.flags:
            self.leave_out(self.origins.pop(flag), self.flags.pop(flag), why)

    def copies(self) -> int | None:
        """Data parallel workers, where the number of workers is known."""
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size")
        model = math.prod(self.flags.get(size, 1) for size in sizes)
        return self.workers // model if self.workers and self.workers % model == 0 else None

"""What ranks and Ray's controller tell the driver: one kind of record a class, plain values, told apart by `kind`.

Steps count from 1, losses are nats a trained token, times are seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NotRequired, TypedDict


class Phase(TypedDict):
    """What a run does now, for the terminal."""

    kind: Literal["phase"]
    text: str


class Began(TypedDict):
    """Rank 0 begins a phase of its start (raymb.telemetry.startup)."""

    kind: Literal["began"]
    phase: str
    time: float


class Warn(TypedDict):
    """What a user should know although the run continues."""

    kind: Literal["warning"]
    text: str


class Start(TypedDict):
    """The workers begin to train after `step`.

    Args:
        chip: the GPU's name, or the processor's.
        copies: the data parallel size.
    """

    kind: Literal["start"]
    step: int
    chip: str
    copies: int
    world_size: int


class Part(TypedDict):
    """What one data parallel copy knows of a step."""

    kind: Literal["part"]
    step: int
    copy: int
    tokens: int
    trained_tokens: int
    memory_bytes: int
    skipped: NotRequired[bool]


class LossPart(Part):
    """The part of the one copy that knows the loss of all."""

    time: float
    loss: float
    grad_norm: float | None
    learning_rate: float | None
    step_seconds: float
    tflops_per_worker: float


class Step(TypedDict):
    """A whole step, joined from its parts: a line of metrics.jsonl."""

    kind: Literal["train"]
    step: int
    time: float
    loss: float
    grad_norm: float | None
    learning_rate: float | None
    step_seconds: float
    tokens: int
    trained_tokens: int
    tokens_per_second: float
    tokens_per_second_per_worker: float
    samples: int
    tflops_per_worker: float
    memory_bytes: int
    skipped: NotRequired[bool]
    mfu: NotRequired[float]


class HeldOutLoss(TypedDict):
    """The loss on held-out rows after a step: a line of metrics.jsonl."""

    kind: Literal["validation", "test"]
    step: int
    time: float
    loss: float


class Saved(TypedDict):
    """A checkpoint is whole, so many seconds after it was begun."""

    kind: Literal["checkpoint"]
    step: int
    seconds: NotRequired[float]


class Findings(TypedDict):
    """What exported directories were found to be (raymb.export.verify.check), how long that took and where they are."""

    problems: list[str]
    error: float | None
    tolerance: float | None
    rows: int | None
    positions: int | None
    losses: tuple[float, float] | None
    unmeasured: str | None
    seconds: float
    directories: list[str]


class Export(Findings):
    """A Hugging Face model or adapter is written and verified: a line of metrics.jsonl."""

    kind: Literal["export"]
    step: int
    time: float


RankStatus = TypedDict(
    "RankStatus", {"kind": Literal["rank"], "rank": int, "node": str, "pid": int, "in": str, "step": int}
)
"""Where a rank is: the phase it is in, and the last step that it has finished."""
Hang = TypedDict("Hang", {"kind": Literal["hang"], "rank": int, "in": str, "others": dict[int, str]})
"""A rank makes no progress in a phase; the states of the other processes on its host."""


class Failed(TypedDict):
    """The workers have failed, rank first (None: nobody knows); `why` says why they do not start again."""

    kind: Literal["failure"]
    time: float
    rank: int | None
    text: str
    died: bool
    workers: dict[str, str]
    restarts: bool
    why: str
    failures: int
    max_failures: int


Record = Phase | Began | Warn | Start | Part | LossPart | HeldOutLoss | Saved | Export | RankStatus | Hang | Failed
"""What is sent."""
Metric = Step | HeldOutLoss | Export
"""What is written to metrics.jsonl and to trackers."""
Line = dict[str, Any]
"""A record as it is read again from a file, of this version of raymb or an older one."""
Emit = Callable[[Record], None]
"""Takes a record and returns at once."""

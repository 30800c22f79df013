"""Parts of a step become one record when the last of them has come."""

from __future__ import annotations

from typing import Any

import pytest

from raymb.telemetry.steps import StepJoiner


def _part(step: int, tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "kind": "part",
        "step": step,
        "copy": 1,
        "tokens": tokens,
        "trained_tokens": tokens // 2,
        "memory_bytes": 10,
    } | more


def _knowing(step: int, tokens: int) -> dict[str, Any]:
    known = {"loss": 1.5, "grad_norm": 0.25, "learning_rate": 1e-5, "step_seconds": 2.0, "tflops_per_worker": 98.94}
    known["time"] = 7.0
    return _part(step, tokens, memory_bytes=30, copy=0, **known)


def test_step_is_joined_when_its_last_part_arrives() -> None:
    joiner = StepJoiner(parts=2, samples=8, world_size=4)
    assert joiner.join(_part(1, 100)) is None
    assert joiner.join(_knowing(1, 60)) == {
        "kind": "train",
        "step": 1,
        "time": 7.0,
        "loss": 1.5,
        "grad_norm": 0.25,
        "learning_rate": 1e-5,
        "step_seconds": 2.0,
        "tokens": 160,
        "trained_tokens": 80,
        "tokens_per_second": 80.0,
        "tokens_per_second_per_worker": 20.0,
        "samples": 8,
        "tflops_per_worker": 98.94,
        "memory_bytes": 30,
    }
    assert joiner.waiting == {}


def test_parts_of_two_steps_do_not_mix() -> None:
    joiner = StepJoiner(parts=2, samples=8, world_size=2)
    assert joiner.join(_part(2, 100)) is None
    assert joiner.join(_knowing(1, 60)) is None
    first = joiner.join(_part(1, 1))
    assert first is not None and (first["step"], first["tokens"]) == (1, 61)


def test_step_done_again_replaces_a_lost_groups_parts() -> None:
    joiner = StepJoiner(parts=2, samples=8, world_size=2)
    assert joiner.join(_part(3, 100)) is None
    assert joiner.join(_part(3, 60)) is None  # the same copy, after the restart
    joined = joiner.join(_knowing(3, 60))
    assert joined is not None and joined["tokens"] == 120


def test_mfu_stands_where_the_chip_is_known() -> None:
    joiner = StepJoiner(parts=1, samples=8, world_size=2)
    joiner.chip = "NVIDIA H100 80GB HBM3"
    record = joiner.join(_knowing(1, 60))
    assert record is not None and record["mfu"] == pytest.approx(0.1)

"""Errors that come from another process say there what they said here."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from raymb import errors
from raymb.errors import BadLoss, PlanError, RaymbError, WorkersStopped


def _all(base: type[RaymbError] = RaymbError) -> Iterator[type[RaymbError]]:
    yield base
    for cls in base.__subclasses__():
        if cls.__module__ == errors.__name__:
            yield from _all(cls)


SPECIAL = {PlanError, BadLoss, WorkersStopped}
ERRORS = [
    *(pytest.param(cls("what", "how"), id=cls.__name__) for cls in _all() if cls not in SPECIAL),
    BadLoss(7, "the gradient norm is nan"),
    WorkersStopped("preemption", 12),
    pytest.param(
        PlanError(["a rule", "another one"]),
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_over_whole(error: RaymbError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.__dict__ == error.__dict__ and str(again) == str(error)
    assert again.exit_code == error.exit_code


def test_the_tree_at_the_top_of_the_module_is_the_tree() -> None:
    assert errors.__doc__ is not None
    assert all(cls.__name__ in errors.__doc__ for cls in _all())

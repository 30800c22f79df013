"""Ray Train's controller with raymb's placement: workers start in places that have been waited for.

Ray Train 2.60 asks for resources by itself when it starts workers, calls it a failure when they do not come within a
minute, and tries again without end and without hearing of an abort meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from ray.actor import exit_actor

from raymb.driver.placement import Placement
from raymb.runtime.ray_internals import (
    DefaultPlacementGroupHandle,
    TrainController,
    WorkerGroup,
)

_SECONDS_BETWEEN_STEPS = 0.05


class Places(DefaultPlacementGroupHandle):
    """A placement group that may outlive its workers: those that start again find their places still theirs."""

    def __init__(self, placement: Placement):
        self.placement, self.reservation = placement, placement.take()
        super().__init__(self.reservation.group)

    def shutdown(self) -> None:
        self.placement.left(self.reservation)


class Workers(WorkerGroup):
    """Workers that start in the places that Placement has."""

    def _create_placement_group(self, *given: Any, **named: Any) -> Places:
        self.places = Places(_placement(self._callbacks))
        return self.places

    def _create_workers(self, num_workers: int, placement_group: Any, *given: Any, **named: Any) -> Any:
        named.setdefault("placement_group_bundle_indices", self.places.reservation.bundles())
        return super()._create_workers(num_workers, placement_group, *given, **named)


class Controller(TrainController):
    """Waits for places without being deaf, and withdraws what it has asked for when it ends.

    Args:
        variables: for its environment.
    """

    worker_group_cls = Workers

    def __init__(
        self,
        variables: Mapping[str, str],
        *,
        scaling_policy: Any,
        failure_policy: Any,
        callbacks: Any = None,
        **settings: Any,
    ):
        os.environ.update(variables)
        # They arrive by ways of their own, and so as copies: one Placement serves them all here.
        self._placement = scaling_policy.placement = failure_policy.placement = _placement(callbacks)
        super().__init__(scaling_policy=scaling_policy, failure_policy=failure_policy, callbacks=callbacks, **settings)

    async def _step(self) -> Any:
        if self.get_state().needs_new_run_attempt() and self.get_worker_group() is not None:
            self._shutdown_worker_group()  # else the workers that failed keep the places that are waited for
        if self.get_worker_group() is None:
            await asyncio.sleep(_SECONDS_BETWEEN_STEPS)  # else it hears of no abort between two looks
            if self.get_state().is_terminal():
                exit_actor()
        return await super()._step()

    def _is_preemption_deadline_exceeded(self, info: Any, detected: float, extra: float = 0.0) -> bool:
        policy: Any = self._failure_policy
        return super()._is_preemption_deadline_exceeded(info, detected, policy.grace(extra))

    async def _shutdown(self) -> Any:
        self._placement.withdraw()
        return await super()._shutdown()

    async def abort(self) -> None:
        self._placement.withdraw()
        await super().abort()


def _placement(callbacks: Any) -> Placement:
    return next(one for one in callbacks if isinstance(one, Placement))

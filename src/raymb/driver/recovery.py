"""What the controller of Ray Train does when workers fail: start them again, or give up.

Preemptions, which are nobody's fault, have a budget of their own, and a resize costs nothing. An error that would come
again is not tried again: one in the user's input or in the program, or the same one twice without a checkpoint between.
That there are no resources is no failure: the controller waits for them (raymb.driver.placement).
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig

from raymb.driver.placement import Placement
from raymb.errors import BadLoss, RaymbError, StorageError, WorkersStopped, last_line
from raymb.runtime.ray_internals import (
    DefaultFailurePolicy,
    ElasticScalingPolicy,
    FailureDecision,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
)
from raymb.spec.sections import Resilience
from raymb.telemetry.records import Failed

_WOULD_COME_AGAIN = (
    "ArithmeticError",
    "AssertionError",
    "AttributeError",
    "ImportError",
    "LookupError",
    "NameError",
    "NotImplementedError",
    "TypeError",
    "ValueError",
)
_CONSEQUENCE = re.compile(
    r"connection (closed|reset|refused)|broken pipe|remote process exited|NCCL (communicator|timeout|error)|socket|"
    r"connect(ion)? time|recv|failed to (recv|get|connect)|wait timeout|crash on rank|no error$",
    re.I,
)


class RestartPolicy(DefaultFailurePolicy):
    """Decides, and tells the driver what happened.

    Args:
        hub: the actor that the driver listens to.
        rollback: whether --bad_loss rollback was given.
        environment: the Carried variables that the controller's process has once it has this policy.
    """

    def __init__(self, failure_config: FailureConfig, hub: Any, rollback: bool, environment: Any = None):
        super().__init__(failure_config)
        self.hub, self.rollback, self.environment = hub, rollback, environment
        self.before: tuple[Any, ...] | None = None
        self.placement: Placement | None = None

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        failures = dict(getattr(training_failed_error, "worker_failures", None) or {})
        if not failures:
            return self._without_workers(training_failed_error)
        rank, cause = first_cause(failures)
        if isinstance(cause, WorkersStopped):
            return self._start_again_after(cause)
        futile = self._why_futile(rank, cause)
        decision = FailureDecision.RAISE if futile else super().make_decision(training_failed_error)
        if self.placement is not None and decision == FailureDecision.RETRY:
            self.placement.failed_on(_causes(failures))
        return self._decided(decision, failures, _text(cause), futile or self._used_up(decision))

    def grace(self, asked: float) -> float:
        """Seconds that the workers which stay have for a last checkpoint when a node is taken away.

        Args:
            asked: --grace_time.
        """
        seconds: Any = 0.0
        with contextlib.suppress(RayError):
            seconds = ray.get(self.hub.last_save.remote(), timeout=10)
        return Resilience(grace_time=asked).grace(seconds)

    def _without_workers(self, error: Any) -> FailureDecision:
        """Of the controller: a start that failed counts as a failure, anything else ends the run."""
        cause = getattr(error, "controller_failure", error)
        if isinstance(cause, RaymbError):  # what is asked of the cluster cannot be had: the driver says it
            return FailureDecision.RAISE
        if not self._is_retryable_error(error):
            return self._decided(FailureDecision.RAISE, {}, _text(error), "Ray Train cannot start the workers")
        self._worker_group_failures += 1
        enough = self._worker_group_failures > self.failure_config.max_failures
        return self._decided(FailureDecision.RAISE if enough else FailureDecision.RETRY, {}, _text(cause), "")

    def _start_again_after(self, stopped: WorkersStopped) -> FailureDecision:
        with contextlib.suppress(RayError):
            ray.get(self.hub.fulfilled.remote(stopped.reason), timeout=10)
        limit = self.failure_config.max_preemption_failures
        if stopped.reason == "preemption":
            self._preemption_failures += 1
            if limit != -1 and self._preemption_failures > limit:
                return self._decided(FailureDecision.RAISE, {}, stopped.message, f"the {limit} preemptions are used up")
        return self._decided(FailureDecision.RETRY, {}, stopped.message, "")

    def _why_futile(self, rank: int, cause: Any) -> str:
        if isinstance(cause, BadLoss):
            return "" if self.rollback else "it would come again"
        if is_out_of_gpu_memory(cause):
            return "it would come again with this layout"
        names = {cls.__name__ for cls in type(cause).__mro__}
        if (isinstance(cause, RaymbError) and not isinstance(cause, StorageError)) or names & set(_WOULD_COME_AGAIN):
            return "it would come again"
        if _died(cause):
            return ""
        now = (rank, _text(cause), self._newest_checkpoint())
        again, self.before = now == self.before, now
        return "it has come again, with no checkpoint between" if again else ""

    def _used_up(self, decision: FailureDecision) -> str:
        limit = self.failure_config.max_failures
        if decision == FailureDecision.RETRY or self._worker_group_failures > limit:
            return ""
        return f"the {self.failure_config.max_preemption_failures} preemptions are used up"

    def _newest_checkpoint(self) -> int:
        with contextlib.suppress(RayError):
            return ray.get(self.hub.newest_checkpoint.remote(), timeout=10)
        return 0

    def _decided(self, decision: FailureDecision, failures: dict[int, Any], text: str, futile: str) -> FailureDecision:
        rank = first_cause(failures)[0] if failures else None
        record: Failed = {
            "kind": "failure",
            "time": time.time(),
            "rank": rank,
            "text": text,
            "died": rank is not None and _died(failures[rank]),
            "workers": {str(number): _text(error) for number, error in failures.items()},
            "restarts": decision == FailureDecision.RETRY,
            "why": futile,
            "failures": self._worker_group_failures,
            "max_failures": self.failure_config.max_failures,
        }
        with contextlib.suppress(RayError):
            ray.get(self.hub.push.remote([record]), timeout=10)
        return decision


class FixedPolicy(FixedScalingPolicy):
    """One size. What the autoscaler sees is the placement group that is waited for: nothing else asks for resources."""

    placement: Placement

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def make_decision_for_non_running_worker_group(self) -> Any:
        return _size_now(self)

    def make_decision_for_running_worker_group(self, *state: Any, **named: Any) -> Any:
        return NoopDecision()


class ElasticPolicy(ElasticScalingPolicy):
    """Only sizes that the layout can use, and no step lost for growing: the workers are asked for a checkpoint first.

    Args:
        hub: the actor through which the workers are asked.
    """

    placement: Placement

    def __init__(self, scaling_config: Any, hub: Any):
        super().__init__(scaling_config)
        self.hub = hub

    def _get_reserved_resources(self) -> Any:
        """Nothing that anybody has to be asked for: Ray Train counts what the cluster has, in use or not."""
        return {}

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        return self.placement.possible()

    def make_decision_for_non_running_worker_group(self) -> Any:
        self._maybe_send_resource_request()
        return _size_now(self)

    def make_decision_for_running_worker_group(self, *state: Any, **named: Any) -> Any:
        decision = super().make_decision_for_running_worker_group(*state, **named)
        if isinstance(decision, ResizeDecision):
            with contextlib.suppress(RayError):
                ray.get(self.hub.ask.remote("resize"), timeout=10)
        return NoopDecision()


def _size_now(policy: FixedPolicy | ElasticPolicy) -> Any:
    """The places that there are for workers that do not run; nothing while they are waited for."""
    count = policy.placement.look()
    if count is None:
        return NoopDecision()
    each: Any = policy.scaling_config._resources_per_worker_not_none
    return ResizeDecision(count, each)


def first_cause(failures: dict[int, Any]) -> tuple[int, Any]:
    """(rank, exception) of the worker failure that caused the others: a peer's closed connection is a consequence, and
    a process that died has died of itself."""
    raised, dead, items = _sorted_out(failures)
    return next(iter([*raised, *dead, *items]))


def is_out_of_gpu_memory(error: Any) -> bool:
    """Whether it is torch's error; Ray has one of that name, for a host's memory."""
    return any((cls.__module__, cls.__name__) == ("torch", "OutOfMemoryError") for cls in type(error).__mro__)


def _causes(failures: dict[int, Any]) -> list[int]:
    """The ranks that failed by themselves."""
    raised, dead, _ = _sorted_out(failures)
    return [rank for rank, _ in raised or dead]


def _sorted_out(failures: dict[int, Any]) -> tuple[list[tuple[int, Any]], ...]:
    """(rank, exception) of those that raised by themselves, of those whose process is gone, and of all."""
    items = [(rank, getattr(failures[rank], "_base_exc", failures[rank])) for rank in sorted(failures)]
    dead = [item for item in items if _died(item[1])]
    raised = [item for item in items if not _died(item[1]) and not _is_consequence(item[1])]
    return raised, dead, items


def _is_consequence(error: Any) -> bool:
    """Whether an exception tells of another rank's end; it may take several lines to do so."""
    return bool(_CONSEQUENCE.search(f"{type(error).__name__} {error}"))


def _died(error: Any) -> bool:
    """Whether a worker's process is gone, instead of an exception raised in it."""
    return type(error).__name__ in ("WorkerHealthCheckFailedError", "ActorDiedError", "RayActorError")


def _text(error: Any) -> str:
    """`ValueError: what it says`, from the last line that is not indented."""
    error = getattr(error, "_base_exc", error)
    name = "" if isinstance(error, RaymbError) else f"{type(error).__name__}: "
    return name + last_line(error)

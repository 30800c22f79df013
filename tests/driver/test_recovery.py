"""What is tried again and what is not, without a cluster: Ray Train's own errors, and a hub in this process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError
from ray.exceptions import OutOfMemoryError as RaysOutOfMemoryError
from ray.train import ControllerError, FailureConfig, ScalingConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision

from raymb.driver import recovery
from raymb.driver.recovery import ElasticPolicy, FixedPolicy, RestartPolicy, first_cause, last_line
from raymb.errors import BadLoss, ClusterError, DataError, RunFailed, WorkersStopped

RETRY, RAISE = FailureDecision.RETRY, FailureDecision.RAISE
GLOO_RESET = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:40326: Connection reset by peer"
)
GLOO_CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:52426"
STORE_GONE = "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"
NCCL_ABORTED = "NCCL communicator was aborted on rank 1."
NCCL_EXITED = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, remote process exited or there was a "
    "network error, NCCL version 2.28.9"
)
CONSEQUENCES = [
    RuntimeError(GLOO_RESET),
    RuntimeError(GLOO_CLOSED),
    torch.distributed.DistNetworkError(STORE_GONE),
    torch.distributed.DistBackendError(NCCL_ABORTED),
    torch.distributed.DistBackendError(NCCL_EXITED),
    ConnectionResetError(104, "Connection reset by peer"),
    BrokenPipeError(32, "Broken pipe"),
]


def died(preempted: bool = False) -> WorkerHealthCheckFailedError:
    """A worker's process is gone, as the controller hears of it."""
    cause = RayActorError(preempted=True) if preempted else ActorDiedError()
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: rank 1", cause)


class Hub:
    """The actor's methods, which answer at once; what they return is what ray.get returns."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.checkpoint = 0
        self.push = SimpleNamespace(remote=self.records.extend)
        self.ask = SimpleNamespace(remote=self.asked.append)
        self.done: list[str] = []
        self.fulfilled = SimpleNamespace(remote=self.done.append)
        self.newest_checkpoint = SimpleNamespace(remote=lambda: self.checkpoint)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(recovery.ray, "get", lambda reference, timeout: reference)
    return Hub()


def _policy(hub: Hub, max_failures: int = 3, max_preemptions: int = -1, rollback: bool = False) -> RestartPolicy:
    return RestartPolicy(
        FailureConfig(max_failures=max_failures, max_preemption_failures=max_preemptions), hub, rollback
    )


def _workers(failures: dict[int, Exception]) -> WorkerGroupError:
    return WorkerGroupError("", failures)


# Which rank it was


@pytest.mark.parametrize("consequence", CONSEQUENCES, ids=lambda error: f"{type(error).__name__}: {str(error)[-20:]}")
def test_a_lost_connection_is_a_consequence(consequence: Exception) -> None:
    cause = RuntimeError("a fault of the test")
    assert first_cause({0: consequence, 1: consequence, 2: cause}) == (2, cause)
    dead = died()
    assert first_cause({0: consequence, 1: dead, 2: consequence}) == (1, dead)
    assert first_cause({1: consequence, 0: consequence})[0] == 0, "if there is nothing else"


# Of each the last line says nothing of a connection, and so they count as causes.
NCCL_STORE = (
    "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', but "
    "store->get('0') got error: Connection reset by peer\nException raised from recvBytes at "
    "/pytorch/torch/csrc/distributed/c10d/Utils.hpp:682 (most recent call first):\nframe #0: c10::Error::Error() "
    "+ 0x9d (0x7f018ef7305d in libc10.so)\nframe #1: clone + 0x44 (0x7f2 in libc.so.6)\n. This may indicate a possible "
    "application crash on rank 0 or a network set up issue."
)
NCCL_LINES = (
    f"{NCCL_EXITED}\nncclRemoteError: A call failed possibly due to a network error or a remote process exiting "
    "prematurely.\nLast error:\n"
)
WAITED = "wait timeout after 1800000ms, keys: /raymb/stop/promise/1"
UNSEEN = {
    "NCCL, several lines": torch.distributed.DistBackendError(NCCL_LINES),
    "NCCL over the store": torch.distributed.DistBackendError(NCCL_STORE),
    "the store's time": torch.distributed.DistStoreError(WAITED),
}


@pytest.mark.parametrize("consequence", UNSEEN.values(), ids=UNSEEN)
def test_a_lost_connection_is_a_consequence_whatever_its_last_line_is(consequence: Exception) -> None:
    dead = died()
    assert first_cause({0: consequence, 1: dead}) == (1, dead)


def test_an_exception_comes_before_a_death_and_the_lower_rank_first() -> None:
    cause = ValueError("rows are missing")
    assert first_cause({0: died(), 1: cause})[0] == 1  # a process that raised took the other one's peer away
    assert first_cause({3: cause, 1: cause, 2: cause})[0] == 1
    assert first_cause({2: died(), 1: died()})[0] == 1


def test_what_ray_wraps_is_looked_into() -> None:
    cause = ValueError("rows are missing")
    assert first_cause({0: RuntimeError(GLOO_RESET), 1: UserExceptionWithTraceback(cause, "Traceback ...")}) == (
        1,
        cause,
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a"), "a"),
        (ValueError("a\n  an indented line\nb\n\n   of it\n"), "b"),
        (ValueError(""), "ValueError"),
        ("Traceback (most recent call last):\n  File x\nValueError: why\n", "ValueError: why"),
    ],
)
def test_last_line(error: object, line: str) -> None:
    assert last_line(error) == line


# Deaths and errors


def test_a_death_is_charged_until_the_failures_are_used_up(hub: Hub) -> None:
    policy = _policy(hub, max_failures=2)
    decisions = [policy.make_decision(_workers({0: RuntimeError(GLOO_RESET), 1: died()})) for _ in range(3)]
    assert decisions == [RETRY, RETRY, RAISE]
    assert [record["restarts"] for record in hub.records] == [True, True, False]
    record = hub.records[1]
    assert (record["kind"], record["rank"], record["died"], record["why"]) == ("failure", 1, True, "")
    assert (record["failures"], record["max_failures"]) == (2, 2)
    assert record["workers"]["0"] == f"RuntimeError: {GLOO_RESET}"
    assert set(record["workers"]) == {"0", "1"}


def test_no_failures_allowed_is_no_restart(hub: Hub) -> None:
    assert _policy(hub, max_failures=0).make_decision(_workers({1: died()})) == RAISE


FUTILE = {
    "ValueError": ValueError("rows are missing"),
    "a subclass": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "KeyError": KeyError("lm loss"),
    "IndexError": IndexError("list index out of range"),
    "ImportError": ModuleNotFoundError("No module named 'x'"),
    "AttributeError": AttributeError("x"),
    "AssertionError": AssertionError("x"),
    "ZeroDivisionError": ZeroDivisionError("x"),
    "a user's mistake": DataError("no rows", "give --dataset"),
    "the last checkpoint": RunFailed("the last checkpoint, at step 9, could not be written"),
    "a bad loss": BadLoss(7, "the gradient norm is nan"),
    "wrapped": UserExceptionWithTraceback(TypeError("x"), "Traceback ..."),
}


def test_a_layout_that_is_out_of_gpu_memory_is_not_tried_again(hub: Hub) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert _policy(hub).make_decision(_workers({0: RuntimeError(GLOO_RESET), 1: error})) == RAISE
    assert [(one["rank"], one["why"]) for one in hub.records] == [(1, "it would come again with this layout")]


def test_a_process_that_ray_ends_for_its_hosts_memory_starts_again(hub: Hub) -> None:
    assert _policy(hub).make_decision(_workers({1: RaysOutOfMemoryError("the node is running low on memory")})) == RETRY


@pytest.mark.parametrize("error", FUTILE.values(), ids=FUTILE)
def test_what_would_come_again_is_not_tried_again(error: Exception, hub: Hub) -> None:
    policy = _policy(hub)
    assert policy.make_decision(_workers({0: RuntimeError(GLOO_RESET), 1: error})) == RAISE
    (record,) = hub.records
    assert (record["rank"], record["why"], record["restarts"], record["died"]) == (
        1,
        "it would come again",
        False,
        False,
    )
    cause = getattr(error, "_base_exc", error)
    assert record["text"].endswith(last_line(cause))
    assert record["text"].startswith(type(cause).__name__) == (type(cause).__module__ != "raymb.errors")


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: an illegal memory access"), OSError(5, "Input/output error"), TimeoutError("x")]
)
def test_what_may_pass_is_tried_again_and_charged(error: Exception, hub: Hub) -> None:
    policy = _policy(hub, max_failures=1)
    assert policy.make_decision(_workers({1: error})) == RETRY
    hub.checkpoint = 10
    assert policy.make_decision(_workers({1: error})) == RAISE
    assert hub.records[1]["why"] == "", "the failures are used up"


def test_the_same_error_twice_without_a_checkpoint_between_ends_it(hub: Hub) -> None:
    policy = _policy(hub, max_failures=9)
    again = _workers({1: RuntimeError("CUDA error: an illegal memory access")})
    assert policy.make_decision(again) == RETRY
    hub.checkpoint = 10
    assert policy.make_decision(again) == RETRY
    assert (
        policy.make_decision(_workers({2: RuntimeError("CUDA error: an illegal memory access")})) == RETRY
    )  # elsewhere
    assert policy.make_decision(_workers({2: RuntimeError("another one")})) == RETRY
    assert policy.make_decision(_workers({2: RuntimeError("another one")})) == RAISE
    assert [record["why"] for record in hub.records] == [*[""] * 4, "it has come again, with no checkpoint between"]


def test_the_same_death_twice_is_tried_again(hub: Hub) -> None:
    policy = _policy(hub, max_failures=5)
    assert [policy.make_decision(_workers({1: died()})) for _ in range(4)] == [RETRY] * 4


def test_a_bad_loss_is_tried_again_where_rollback_was_asked_for(hub: Hub) -> None:
    policy = _policy(hub, max_failures=2, rollback=True)
    bad = _workers({rank: BadLoss(7, "the gradient norm is nan") for rank in range(2)})
    assert [policy.make_decision(bad) for _ in range(3)] == [RETRY, RETRY, RAISE]
    assert hub.records[0]["text"] == "step 7: the gradient norm is nan"


def test_an_error_of_the_controller_has_no_rank(hub: Hub) -> None:
    policy = _policy(hub)
    assert policy.make_decision(ControllerError(WorkerGroupStartupTimeoutError(4))) == RETRY
    assert policy.make_decision(ControllerError(ValueError("a wrong setting"))) == RAISE
    assert [record["failures"] for record in hub.records] == [1, 1]
    assert [(record["rank"], record["died"], record["workers"]) for record in hub.records] == [(None, False, {})] * 2
    assert hub.records[1]["text"].endswith("a wrong setting")


def test_starts_that_fail_count(hub: Hub) -> None:
    """Ray Train alone would try for ever."""
    policy = _policy(hub, max_failures=2)
    failed = ControllerError(WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize."))
    assert [policy.make_decision(failed) for _ in range(2)] == [RETRY, RETRY]
    assert policy.make_decision(failed) == RAISE
    assert [record["failures"] for record in hub.records] == [1, 2, 3]
    policy = _policy(hub, max_failures=2)
    assert [policy.make_decision(error) for error in (failed, _workers({1: died()}), failed)] == [RETRY, RETRY, RAISE]


def test_what_cannot_be_had_of_the_cluster_is_no_failure(hub: Hub) -> None:
    policy = _policy(hub)
    assert policy.make_decision(ControllerError(ClusterError("the cluster has too little", "wait longer"))) == RAISE
    assert hub.records == [], "the driver says it"


@pytest.mark.parametrize(
    ("failures", "blamed"),
    [
        ({0: RuntimeError(GLOO_RESET), 1: died(), 2: RuntimeError(GLOO_CLOSED)}, [1]),
        ({0: died(), 1: RuntimeError("a fault"), 2: died()}, [1]),
        ({0: died(), 1: died()}, [0, 1]),
        ({0: RuntimeError(GLOO_RESET)}, []),
    ],
    ids=["death", "exception", "all", "consequences"],
)
def test_the_ranks_that_failed_by_themselves_are_told(
    hub: Hub, failures: dict[int, Exception], blamed: list[int]
) -> None:
    told: list[list[int]] = []
    policy = _policy(hub, max_failures=1)
    policy.placement = SimpleNamespace(failed_on=told.append)  # type: ignore[assignment]
    assert policy.make_decision(_workers(failures)) == RETRY
    assert told == [blamed]
    policy.make_decision(_workers({0: WorkersStopped("preemption", 3)}))
    policy.make_decision(_workers({0: died()}))
    assert told == [blamed], "only of workers that failed and start again"


def test_a_hub_that_does_not_answer_changes_no_decision(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(reference: Any, timeout: float) -> None:
        raise GetTimeoutError

    monkeypatch.setattr(recovery.ray, "get", late)
    policy = _policy(hub, max_failures=2)
    assert policy.make_decision(_workers({1: died()})) == RETRY
    assert policy.make_decision(_workers({1: WorkersStopped("resize", 7)})) == RETRY
    assert policy.make_decision(_workers({1: RuntimeError("x")})) == RETRY


# Stops that are no failures


def test_preemptions_cost_no_failure(hub: Hub) -> None:
    policy = _policy(hub, max_failures=0)
    stopped = _workers({rank: WorkersStopped("preemption", 12) for rank in range(3)})
    assert [policy.make_decision(stopped) for _ in range(20)] == [RETRY] * 20
    record = hub.records[0]
    assert (record["rank"], record["failures"], record["workers"]) == (None, 0, {})
    assert record["text"] == "stopped after step 12 for preemption"
    assert hub.done == ["preemption"] * 20, "the request is taken back, or the next start would stop, too"


def test_preemptions_have_a_limit_of_their_own(hub: Hub) -> None:
    policy = _policy(hub, max_failures=5, max_preemptions=2)
    stopped = _workers({0: WorkersStopped("preemption", 12)})
    assert [policy.make_decision(stopped) for _ in range(3)] == [RETRY, RETRY, RAISE]
    assert hub.records[2]["why"] == "the 2 preemptions are used up"


def test_a_node_that_was_taken_away_at_once_is_a_preemption_too(hub: Hub) -> None:
    policy = _policy(hub, max_failures=0, max_preemptions=2)
    taken = _workers({0: RuntimeError(GLOO_RESET), 1: died(preempted=True)})
    assert policy.make_decision(taken) == RETRY
    assert policy.make_decision(_workers({0: WorkersStopped("preemption", 12)})) == RETRY
    assert policy.make_decision(taken) == RAISE, "both are counted together"


@pytest.mark.parametrize(("asked", "took", "seconds"), [(30, 0, 30), (30, 10, 30), (30, 400, 800), (0, 400, 0)])
def test_a_node_that_is_taken_away_leaves_as_long_as_a_save_takes(
    hub: Hub, asked: float, took: float, seconds: float
) -> None:
    hub.last_save = SimpleNamespace(remote=lambda: took)
    assert _policy(hub).grace(asked) == seconds


def test_a_resize_costs_nothing(hub: Hub) -> None:
    policy = _policy(hub, max_failures=0, max_preemptions=0)
    assert policy.make_decision(_workers({0: WorkersStopped("resize", 12), 1: WorkersStopped("resize", 12)})) == RETRY
    assert hub.done == ["resize"]


def test_a_rank_that_lost_its_peers_while_leaving_does_not_turn_a_stop_into_a_failure(hub: Hub) -> None:
    failures = {0: RuntimeError(GLOO_CLOSED), 1: WorkersStopped("preemption", 12), 2: WorkersStopped("preemption", 12)}
    assert _policy(hub, max_failures=0).make_decision(_workers(failures)) == RETRY


# Sizes


class Places:
    """A placement that has room for so many workers."""

    def __init__(self, room: int | None) -> None:
        self.room = room

    def look(self) -> int | None:
        return self.room

    def possible(self) -> int | None:
        return self.room


@pytest.mark.parametrize("elastic", [True, False])
def test_workers_start_when_there_are_places(hub: Hub, elastic: bool) -> None:
    scaling = ScalingConfig(num_workers=(2, 8) if elastic else 4, resources_per_worker={"CPU": 1.0})
    policy: Any = ElasticPolicy(scaling, hub) if elastic else FixedPolicy(scaling)
    policy._maybe_send_resource_request = lambda: None
    policy.placement = Places(None)
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    policy.placement = Places(4)
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(4, {"CPU": 1.0})


@pytest.mark.parametrize(("free", "running", "asked"), [(8, 4, ["resize"]), (4, 4, []), (0, 4, [])])
def test_workers_that_train_are_asked_before_they_are_more(hub: Hub, free: int, running: int, asked: list[str]) -> None:
    """They come back with a checkpoint; Ray Train would take them away in the middle of a step."""
    policy: Any = ElasticPolicy(ScalingConfig(num_workers=(2, 8), resources_per_worker={"CPU": 1.0}), hub)
    policy._maybe_send_resource_request = lambda: None
    policy.placement = Places(free)
    state: Any = SimpleNamespace(start_time=float("-inf"), num_workers=running)
    decision = policy.make_decision_for_running_worker_group(
        worker_group_state=state, worker_group_status=SimpleNamespace()
    )
    assert isinstance(decision, NoopDecision)
    assert hub.asked == asked

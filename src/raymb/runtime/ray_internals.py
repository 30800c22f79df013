"""Every private name of Ray 2.60 that raymb uses: what it is for, and what happens to a run when Ray has it no more.

`from raymb.runtime.ray_internals import NAME` imports NAME's own module of Ray and nothing else, so that who needs only
Ray's core does not import Ray Train. A name that Ray no longer has is an ImportError, as it would be without this file.
This file imports no Ray by itself and nothing of raymb: rooms above and below the driver use it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray._private.ray_constants import (
        DASHBOARD_ADDRESS,
        DEBUG_AUTOSCALING_STATUS,
        KV_NAMESPACE_DASHBOARD,
    )
    from ray._private.services import start_api_server
    from ray._private.state import state
    from ray._private.worker import print_to_stdstream
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated.autoscaler_pb2 import (
        GetClusterStatusReply,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.experimental.internal_kv import _internal_kv_get
    from ray.train._internal.utils import get_address_and_port
    from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
    from ray.train.v2._internal.util import TrainingFramework

__all__ = [
    "DASHBOARD_ADDRESS",
    "DEBUG_AUTOSCALING_STATUS",
    "KV_NAMESPACE_DASHBOARD",
    "DefaultFailurePolicy",
    "ElasticScalingPolicy",
    "FailureDecision",
    "GcsClient",
    "GetClusterStatusReply",
    "NoopDecision",
    "ResizeDecision",
    "TrainingFramework",
    "WorkerCallback",
    "WorkerGroupCallback",
    "_internal_kv_get",
    "get_address_and_port",
    "get_or_create_autoscaling_coordinator",
    "get_train_context",
    "print_to_stdstream",
    "start_api_server",
    "state",
]


@dataclass(frozen=True)
class Name:
    """
    Args:
        module: of Ray 2.60.
        name: in that module.
        use: what raymb does with it.
        gone: what happens when Ray has it no more.
        members: of the name, that raymb calls, overrides or reads and Ray does not document.
    """

    module: str
    name: str
    use: str
    gone: str
    members: tuple[str, ...] = ()


_NO_RUN = "raymb.launch cannot be imported: no run starts"
_TRAIN = "ray.train.v2._internal"

NAMES = (
    Name(
        "ray._private.worker",
        "print_to_stdstream",
        "replaced: what Ray says of workers and nodes that died goes into the pages of failures",
        "Ray prints it on standard output, page by page, and the pages of failures lack it",
    ),
    Name(
        "ray._private.services",
        "start_api_server",
        "replaced while ray.init() runs: Ray starts an API server and waits for it also where no dashboard is wanted",
        "a run with a cluster of its own starts 1 to 3 s later",
    ),
    Name(
        "ray._private.ray_constants",
        "DASHBOARD_ADDRESS",
        "the key at which the cluster says where its API server is",
        _NO_RUN,
    ),
    Name(
        "ray._private.ray_constants",
        "KV_NAMESPACE_DASHBOARD",
        "that key's namespace",
        _NO_RUN,
    ),
    Name(
        "ray.experimental.internal_kv",
        "_internal_kv_get",
        "reads that key, and what the first autoscaler reports",
        _NO_RUN,
    ),
    Name(
        "ray._private.ray_constants",
        "DEBUG_AUTOSCALING_STATUS",
        "the key of what Ray's first autoscaler (`ray start --autoscaling-config`) reports",
        "a run that has to wait for resources fails where it would say which nodes are starting",
    ),
    Name(
        "ray._private.state",
        "state",
        "the most that the cluster can grow to, where its operator has told Ray",
        "a run that has to wait for resources fails; without the member it waits for what can never come",
        ("get_max_resources_from_cluster_config",),
    ),
    Name(
        "ray._raylet",
        "GcsClient",
        "asks the GCS what Ray's second autoscaler (KubeRay, `ray up`) reports",
        "a run that has to wait for resources fails",
    ),
    Name(
        "ray.core.generated.autoscaler_pb2",
        "GetClusterStatusReply",
        "the message in which the GCS answers",
        "a run that has to wait for resources fails where it would say which nodes are starting",
    ),
    Name(
        "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
        "get_or_create_autoscaling_coordinator",
        "starts the actor that Ray Train's controller asks for resources while the controller itself starts",
        "the controller waits for it, 3 CPU seconds",
    ),
    Name(
        f"{_TRAIN}.execution.failure_handling",
        "DefaultFailurePolicy",
        "the base of raymb.driver.recovery.RestartPolicy: preemptions have a budget of their own",
        _NO_RUN,
        ("make_decision", "_worker_group_failures", "_preemption_failures"),
    ),
    Name(
        f"{_TRAIN}.execution.failure_handling",
        "FailureDecision",
        "what a failure policy returns",
        _NO_RUN,
        ("RETRY", "RAISE"),
    ),
    Name(
        f"{_TRAIN}.execution.scaling_policy",
        "ElasticScalingPolicy",
        "the base of raymb.driver.recovery.ElasticPolicy: only sizes that the layout can use",
        _NO_RUN,
        ("_count_possible_workers", "make_decision_for_running_worker_group"),
    ),
    Name(
        f"{_TRAIN}.execution.scaling_policy",
        "NoopDecision",
        "what ElasticPolicy returns while the workers run: they leave with a checkpoint by themselves",
        _NO_RUN,
    ),
    Name(
        f"{_TRAIN}.execution.scaling_policy",
        "ResizeDecision",
        "what Ray's policy returns when there is room for more workers",
        _NO_RUN,
    ),
    Name(
        f"{_TRAIN}.execution.callback",
        "WorkerGroupCallback",
        "the base of PlacementCallback: looks where Ray has placed the workers before they import Megatron",
        _NO_RUN,
        ("after_worker_group_start",),
    ),
    Name(
        f"{_TRAIN}.execution.callback",
        "WorkerCallback",
        "the base of SigtermCallback: installs a handler on a worker's main thread, before the training begins",
        _NO_RUN,
        ("after_init_train_context",),
    ),
    Name(
        f"{_TRAIN}.util",
        "TrainingFramework",
        "what a backend's configuration says of itself",
        _NO_RUN,
        ("TORCH",),
    ),
    Name(
        "ray.train._internal.utils",
        "get_address_and_port",
        "run on rank 0: where torch.distributed meets",
        _NO_RUN,
    ),
    Name(
        f"{_TRAIN}.execution.context",
        "get_train_context",
        "asked on a worker whether a node of the run will be taken away; the public question is a collective",
        "no rank hears of a preemption from Ray; SIGTERM and metrics come as before",
    ),
)
"""In the order of use, from ray.init() to a worker."""

MEMBERS = (
    Name(
        "ray.train.torch",
        "TorchTrainer",
        "overridden: the callbacks that a run does not use are left out, and the controller gets raymb's policies",
        "Ray Train's own callbacks and policies are used: slower starts, and restarts that --max_failures alone counts",
        ("_create_default_callbacks", "_initialize_and_run_controller"),
    ),
    Name(
        "ray.train",
        "ScalingConfig",
        "read: what one worker needs",
        "the controller of an elastic run fails when it counts the workers that there is room for",
        ("_resources_per_worker_not_none",),
    ),
    Name(
        f"{_TRAIN}.exceptions",
        "UserExceptionWithTraceback",
        "read: the exception that a worker raised",
        "a failure is named after Ray's wrapper, and one that would come again is tried again",
        ("_base_exc",),
    ),
    Name(
        "ray._raylet",
        "InnerGcsClient",
        "what a GcsClient hands its calls on to: called for the second autoscaler's report",
        "a run that has to wait for resources does not see the nodes that are starting",
        ("get_cluster_status",),
    ),
    Name(
        f"{_TRAIN}.execution.context",
        "TrainContext",
        "read: where Ray notes that a node will be taken away",
        "as without get_train_context",
        ("preemption_context",),
    ),
)
"""Private members of classes that are public, or that raymb meets without importing them."""

_MODULES = {one.name: one.module for one in NAMES}


def __getattr__(name: str) -> Any:
    """Ray's object of that name, looked up anew: some of them are replaced for a while."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def replace(name: str, value: Any) -> None:
    """Put something of raymb's in the place of one of NAMES, for all of Ray in this process."""
    setattr(importlib.import_module(_MODULES[name]), name, value)

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
    from ray._private.state import available_resources_per_node, state
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
    from ray.train.v2._internal.constants import get_env_vars_to_propagate
    from ray.train.v2._internal.execution.callback import WorkerCallback, WorkerGroupCallback
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        FixedScalingPolicy,
        NoopDecision,
        ResizeDecision,
    )
    from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
    from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
    from ray.train.v2._internal.util import TrainingFramework

__all__ = [
    "DASHBOARD_ADDRESS",
    "DEBUG_AUTOSCALING_STATUS",
    "KV_NAMESPACE_DASHBOARD",
    "DefaultFailurePolicy",
    "DefaultPlacementGroupHandle",
    "ElasticScalingPolicy",
    "FailureDecision",
    "FixedScalingPolicy",
    "GcsClient",
    "GetClusterStatusReply",
    "NoopDecision",
    "ResizeDecision",
    "TrainController",
    "TrainingFramework",
    "WorkerCallback",
    "WorkerGroup",
    "WorkerGroupCallback",
    "_internal_kv_get",
    "available_resources_per_node",
    "get_address_and_port",
    "get_env_vars_to_propagate",
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
        "ray._private.state",
        "available_resources_per_node",
        "what is free on each node: how many workers of a tensor parallel group there is room for on one",
        _NO_RUN,
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
        "starts the actor that the controller of an elastic run asks for more nodes while the controller starts",
        "the controller waits for it, 3 CPU seconds",
    ),
    Name(
        f"{_TRAIN}.execution.failure_handling",
        "DefaultFailurePolicy",
        "the base of raymb.driver.recovery.RestartPolicy: preemptions have a budget of their own",
        _NO_RUN,
        ("make_decision", "_is_retryable_error", "_worker_group_failures", "_preemption_failures"),
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
        "the base of raymb.driver.recovery.ElasticPolicy: only sizes that the layout can use and there is room for",
        _NO_RUN,
        (
            "_count_possible_workers",
            "_get_reserved_resources",
            "_maybe_send_resource_request",
            "make_decision_for_non_running_worker_group",
            "make_decision_for_running_worker_group",
        ),
    ),
    Name(
        f"{_TRAIN}.execution.scaling_policy",
        "FixedScalingPolicy",
        "the base of raymb.driver.recovery.FixedPolicy: waits for the workers' places",
        _NO_RUN,
        (
            "after_controller_start",
            "make_decision_for_non_running_worker_group",
            "make_decision_for_running_worker_group",
        ),
    ),
    Name(
        f"{_TRAIN}.execution.scaling_policy",
        "NoopDecision",
        "what the policies return while the places are waited for, and while the workers run",
        _NO_RUN,
    ),
    Name(
        f"{_TRAIN}.execution.scaling_policy",
        "ResizeDecision",
        "what the policies return when there are places, and Ray's when there is room for more workers",
        _NO_RUN,
    ),
    Name(
        f"{_TRAIN}.execution.controller",
        "TrainController",
        "the base of raymb.driver.controller.Controller, which hears of an abort while it waits for resources",
        _NO_RUN,
        (
            "_failure_policy",
            "_is_preemption_deadline_exceeded",
            "_shutdown",
            "_shutdown_worker_group",
            "_step",
            "abort",
            "get_result",
            "get_state",
            "get_worker_group",
            "run",
            "worker_group_cls",
        ),
    ),
    Name(
        f"{_TRAIN}.execution.worker_group.worker_group",
        "WorkerGroup",
        "the base of raymb.driver.controller.Workers, which start in places that have been waited for",
        _NO_RUN,
        ("_callbacks", "_create_placement_group", "_create_workers"),
    ),
    Name(
        f"{_TRAIN}.execution.worker_group.placement_group_handle",
        "DefaultPlacementGroupHandle",
        "the base of raymb.driver.controller.Places, which outlive workers that failed",
        _NO_RUN,
        ("shutdown",),
    ),
    Name(
        f"{_TRAIN}.execution.callback",
        "WorkerGroupCallback",
        "the base of Placement, which keeps where Ray has placed the workers",
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
        f"{_TRAIN}.constants",
        "get_env_vars_to_propagate",
        "the user's own variables for Ray Train, which its controller and the workers get",
        _NO_RUN,
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
        "overridden: the callbacks that a run does not use are left out, and raymb's controller and policies are used",
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

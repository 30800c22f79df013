"""From a job to Ray Train's TorchTrainer, with raymb's way of starting again, and without what a fine-tuning run does
not use.

Ray Train 2.60 starts a process for each of these, and each takes 3 CPU seconds of imports while the workers start:
- DatasetsCallback: a manager of Ray Data shards (raymb's rows are read by Bridge);
- PlacementGroupCleanerCallback: frees a placement group whose driver died (a local cluster dies with its driver; on a
  joined cluster it stays). It asks the API server; where there is none and ray[default] is installed, it waits
  for one, 15 s at the end of every run.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymb.credentials import secret
from raymb.driver.cluster import Cluster, Resources
from raymb.driver.controller import Controller
from raymb.driver.environment import given_variables, worker_environment
from raymb.driver.placement import Placement
from raymb.driver.process_group import ProcessGroupConfig, SigtermCallback
from raymb.driver.recovery import ElasticPolicy, FixedPolicy, RestartPolicy
from raymb.driver.resources import Request, Reservation
from raymb.errors import EXIT_INTERRUPTED
from raymb.rank.accelerator import ACCELERATORS
from raymb.run.directory import RunDir
from raymb.run.job import Job
from raymb.runtime.carried import Carried
from raymb.runtime.ray_internals import (
    DASHBOARD_ADDRESS,
    KV_NAMESPACE_DASHBOARD,
    _internal_kv_get,
    get_env_vars_to_propagate,
)
from raymb.storage.remote import Remote
from raymb.telemetry.hub import Hub
from raymb.worker import train_under_ray

_SECONDS_TO_ANSWER = 2.0
_SECONDS_TO_ABORT = 10.0
SECONDS_BETWEEN_RESIZES = 30.0
"""How often an elastic run asks for more workers. A resize costs a start of the workers."""


class RaymbTrainer(TorchTrainer):
    """TorchTrainer with other policies for failures and sizes, minus the callbacks named in `without`; one that Ray no
    longer has is no loss.

    Args:
        place: the run directory.
        hub: the actor that the ranks send metrics to.
        without: class names of Ray Train callbacks.
        policies: `failure_policy`, and `scaling_policy` where another one than Ray's is wanted.
        settings: environment variables of Ray Train, for this run alone; the user's own come first.
    """

    def __init__(
        self,
        *args: Any,
        place: RunDir,
        hub: Any,
        without: frozenset[str],
        policies: dict[str, Any],
        settings: dict[str, str],
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.place, self.hub = place, hub
        self.without, self.policies, self.settings = without, policies, settings

    def fit(self) -> Any:
        _forget_former_runs(self.place)
        return super().fit()

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in self.without]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        """As Ray Train's, with raymb's controller, which gets its variables as an argument: for those of a runtime
        environment Ray starts each process twice, the controller's and those that it starts in turn."""
        settings = {**self.settings, **get_env_vars_to_propagate()}
        actor = ray.remote(Controller).options(num_cpus=0, scheduling_strategy=_on_this_node())
        controller = actor.remote(settings, **{**given, **self.policies})
        if threading.current_thread() is threading.main_thread():
            _abort_on_sigint(controller)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def _abort_on_sigint(controller: Any) -> None:
    """As Ray Train does, which waits for ever for a controller that does not answer."""

    def abort(number: int, frame: Any) -> None:
        with contextlib.suppress(RayError):
            ray.get(controller.abort.remote(), timeout=_SECONDS_TO_ABORT)
        ray.kill(controller)
        sys.exit(EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, abort)


def _on_this_node() -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def make_hub() -> Any:
    """On the driver's node: it must outlive the workers' nodes."""
    return Hub.options(scheduling_strategy=_on_this_node()).remote()


def make_trainer(
    job: Job, cluster: Cluster, resources: Resources, place: RunDir, held: Reservation | None = None
) -> RaymbTrainer:
    """The trainer whose fit() runs a job with these resources for each worker.

    Args:
        held: places that have been waited for.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    hub = make_hub()
    failures, scaling = _failures(job), _scaling(job, resources)
    variables = given_variables(job.spec.cluster.env)
    # The controller looks at the storage, too; of Ray Train it gets only variables that Ray Train knows.
    policies: dict[str, Any] = {
        "failure_policy": RestartPolicy(
            failures, hub, job.spec.resilience.bad_loss == "rollback", environment=Carried(variables)
        )
    }
    policies["scaling_policy"] = ElasticPolicy(scaling, hub) if len(job.plans) > 1 else FixedPolicy(scaling)
    placement = Placement(request_of(job, resources), job.spec.cluster.wait_for_resources, hub, held)
    cleaned = cluster.joined and _has_api_server()
    remote = Remote.of(job.spec.run.storage_path)
    filesystem, storage_path = remote.for_ray() if remote is not None else (None, str(place.path.parent))
    return RaymbTrainer(
        train_under_ray,
        place=place,
        hub=hub,
        without=frozenset({"DatasetsCallback"} | (set() if cleaned else {"PlacementGroupCleanerCallback"})),
        policies=policies,
        settings=_settings(job, cluster.joined),
        train_loop_config={"environment": Carried(secret(variables)), "job": job.to_json(), "hub": hub},
        torch_config=ProcessGroupConfig(ACCELERATORS[job.backend].distributed_backend),  # type: ignore[arg-type]
        scaling_config=scaling,
        run_config=RunConfig(
            # Ray Train's own directory is the run directory: a checkpoint can only be registered from inside it.
            name=place.path.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=failures,
            callbacks=[SigtermCallback(), placement],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": worker_environment(job), **_under_nsys(job)},
        ),
    )


def _has_api_server() -> bool:
    """Whether somebody listens where the cluster says that its API server (dashboard) is: one without a dashboard gives
    an address, too."""
    told = _internal_kv_get(DASHBOARD_ADDRESS, namespace=KV_NAMESPACE_DASHBOARD) or b""
    host, _, port = told.decode().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
    except (OSError, ValueError):
        return False
    return True


def request_of(job: Job, resources: Resources) -> Request:
    """What a job's workers need; one that only rewrites a checkpoint has its ranks on all machines,
    for their memory."""
    tensor = job.layout.tensor_parallel_size if job.task == "train" else 1
    sizes = sorted(job.plans) or [job.layout.num_workers]
    placement = job.spec.cluster.placement if job.task == "train" else "spread"
    return Request(resources.to_dict(), sizes, tensor, placement)


def _failures(job: Job) -> FailureConfig:
    resilience = job.spec.resilience
    return FailureConfig(
        max_failures=resilience.max_failures,
        preemption_grace_s=resilience.grace_time,
        max_preemption_failures=-1 if resilience.max_preemptions is None else resilience.max_preemptions,
    )


def _scaling(job: Job, resources: Resources) -> ScalingConfig:
    sizes = sorted(job.plans)
    return ScalingConfig(
        num_workers=(sizes[0], sizes[-1]) if len(sizes) > 1 else job.layout.num_workers,
        use_gpu=resources.gpus > 0,
        resources_per_worker=resources.to_dict(),
        elastic_resize_monitor_interval_s=SECONDS_BETWEEN_RESIZES,
    )


def _settings(job: Job, joined: bool) -> dict[str, str]:
    """Ray Train's own variables, which its controller reads."""
    settings = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # a health check costs a worker 10 ms of Python
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": str(int(joined)),  # nobody drains the one node of its own
        "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # as Ray Train says of its controller
    }
    if timeout := job.spec.resilience.hang_timeout:  # a worker whose whole process is stopped answers nobody
        settings["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(min(600.0, max(60.0, timeout)))
    # The places are there; only a node that has gone just now can take them away again.
    settings["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "20"
    return settings


def _under_nsys(job: Job) -> dict[str, dict[str, str]]:
    """Ray's way of starting workers under Nsight Systems, which records between the callback's two calls."""
    if job.spec.performance.profiler != "nsys":
        return {}
    steps = (job.spec.performance.profile_steps or "").replace(":", "-")
    Path(job.run_dir, "profile").mkdir(parents=True, exist_ok=True)  # nsys does not make it
    options = {"t": "cuda,nvtx,cublas", "capture-range": "cudaProfilerApi", "capture-range-end": "stop"}
    return {"_nsight": options | {"o": str(Path(job.run_dir, "profile", f"steps-{steps}-%p"))}}


def _forget_former_runs(place: RunDir) -> None:
    """Delete Ray Train's list of checkpoints: a second fit() continues it, and fails where one has been deleted."""
    place.ray_snapshot.unlink(missing_ok=True)
    if place.remote is not None:
        place.remote.delete(place.ray_snapshot.name)

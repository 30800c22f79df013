"""What is left to do for a run's exports when its training has ended: merging, verifying, exporting checkpoints.

The workers have given their GPUs back by then. One task does it, on the machine that has the files, with CPUs and
memory that are asked for and waited for as the workers' places were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raymb.driver.environment import given_variables, worker_environment
from raymb.driver.host_memory import memory_of_finishing
from raymb.driver.resources import Request, wait_for
from raymb.errors import ClusterError, RaymbError, RunFailed, last_line
from raymb.run.job import Job
from raymb.run.unverified import LeftToExport
from raymb.runtime.carried import Carried

_MOST_CPUS = 16  # that a verification makes use of
_LATER = "the checkpoints are there: the same command finishes the export, and so does raymb export RUN"


def finish_exports(left: dict[str, Any], job: Job, hub: Any, say: Callable[[str], None]) -> None:
    """
    Args:
        left: as raymb.worker.train_under_ray returned it.
        hub: the actor that the driver listens to.
        say: takes a line for the user.

    Raises:
        RunFailed: an export cannot be written, is not what it should be, or there is no room to make it.
    """
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    home = nodes.get(left["node"])
    if home is None:
        raise RunFailed("the machine of worker 0, which has the files of the export, has gone", _LATER)
    cpus = max(1, min(_MOST_CPUS, int(home.get("CPU", 1) // 2)))
    worker = {"CPU": float(cpus), "memory": float(min(memory_of_finishing(job), home.get("memory", 0)))}
    elsewhere = tuple(node for node in nodes if node != left["node"])
    try:
        held = wait_for(Request(worker, [1], avoid=elsewhere), job.spec.cluster.wait_for_resources, say)
    except ClusterError as error:
        raise RunFailed(f"the export is not finished: {error.message}", _LATER) from error
    task = ray.remote(_finish).options(
        num_cpus=cpus,
        memory=int(worker["memory"]),
        max_retries=0,
        name="raymb finishes exports",
        scheduling_strategy=PlacementGroupSchedulingStrategy(held.group),
        runtime_env={"env_vars": worker_environment(job) | {"OMP_NUM_THREADS": str(cpus)}},
    )
    running = task.remote(Carried(given_variables(job.spec.cluster.env)), left["job"], left["left"], cpus, hub)
    try:
        ray.get(running)
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, RaymbError) else RunFailed(last_line(error), _LATER) from None
    except RayError as error:
        raise RunFailed(f"the export is not finished: {last_line(error)}", _LATER) from None
    except BaseException:  # a signal: the driver leaves before it has ended
        ray.cancel(running, force=True)  # of one that has ended just now, it would end Ray's core here
        raise
    finally:
        held.withdraw()


def _finish(environment: Carried, job: str, left: LeftToExport, threads: int, hub: Any) -> None:
    """The task.

    Args:
        environment: is in the process's environment by now.
    """
    from raymb.export.during import Exports
    from raymb.telemetry.hub import Sender

    sender = Sender(hub)
    sender.emit({"kind": "phase", "text": "the workers are released; finishing the exports"})
    if left.written is not None:
        left = replace(left, written=replace(left.written, threads=threads))
    try:
        Exports(Job.from_json(job), sender.emit, lambda: None).conclude(left)
    finally:
        sender.close()

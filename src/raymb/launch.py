"""The driver: from a checked spec to workers that train, and back to an exit code."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from raymb import mirror
from raymb import run_dir as directories
from raymb.accelerator import ACCELERATORS
from raymb.cluster import Cluster, Resources, check_storage, connect, start_coordinator, wait_for
from raymb.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, RunFailed
from raymb.interrupt import Interrupts
from raymb.job import Job
from raymb.mirror import pushing
from raymb.outcome import conclude, has_finished, newest_step, reason_of, say_how_to_go_on, where_to_look
from raymb.plan import Plan, usable_plans
from raymb.preflight import Preflight, fingerprint, model_path, run_name
from raymb.remote import Remote
from raymb.remote_lock import RemoteLock
from raymb.reshape import described, layout_of, reshaping, to_reshape
from raymb.spec.duration import seconds_of
from raymb.telemetry.hub import Hub
from raymb.telemetry.monitor import Monitor


def run(checked: Preflight) -> int:
    """Train. Everything that can be refused is refused before the run directory is made.

    Returns:
        the exit code: 0 finished, 75 out of --max_time, 130 interrupted.

    Raises:
        UserError: the run directory or the cluster does not allow it.
        RunFailed: workers started and did not finish.
    """
    spec, console, began = checked.spec, Console(stderr=True), time.monotonic()
    place = directories.RunDir.of(spec, run_name(checked))
    if has_finished(checked, place):
        console.print(f"{place.path} has finished {checked.plan.train_iters} steps; raise --train_iters to go on")
        return EXIT_OK

    with ExitStack() as stack:
        cluster = stack.enter_context(connect(spec))
        backend = cluster.backend(spec.run.backend)
        plans = usable_plans(spec, checked.shape, rows=checked.prepared.rows("train"), backend=backend)
        plan = plans[max(plans)]
        resources = cluster.resources_of_a_worker(backend, spec.cluster.cpus_per_worker, plan.num_workers)
        wait_for(resources, min(plans), spec.cluster.wait_for_resources, console)
        if place.remote is None:
            check_storage(checked.prepared.path.parent, cluster.joined)
        owned = stack.enter_context(_claimed(place, checked, plan, console))
        with pushing(place, console.print):
            job = _job(checked, plans, backend, resources, place)
            directories.write_atomically(place.job, job.to_json())
            directories.write_atomically(place.data, json.dumps(_data(checked), indent=2) + "\n")
            start_coordinator()
            _reshape(job, cluster, place, console)
            return _fit(job, _trainer(job, cluster, resources), place, console, began, owned.lost)


@contextmanager
def _claimed(place: directories.RunDir, checked: Preflight, plan: Plan, console: Console) -> Iterator[RemoteLock]:
    """The run directory is this driver's, on its file system and at its address."""
    spec, owned = checked.spec, RemoteLock(place)
    owned.take(console.print)
    try:
        mirror.pull(place)
        if spec.checkpoint.overwrite:
            mirror.delete_old_run(place)
        directories.claim(place, spec, plan.to_dict(), fingerprint(checked))
        try:
            _forget_former_runs(place)
            mirror.share_rows(checked.prepared.path, spec.run.storage_path)
            yield owned
        finally:
            directories.release(place)
    finally:
        owned.release()


def _forget_former_runs(place: directories.RunDir) -> None:
    """Ray Train goes on with its own list of checkpoints in a second fit(), and stops where one has been deleted."""
    place.ray_snapshot.unlink(missing_ok=True)
    if place.remote is not None:
        place.remote.delete(place.ray_snapshot.name)


def _data(checked: Preflight) -> dict[str, Any]:
    return {"path": str(checked.prepared.path), **checked.prepared.manifest}


def _job(
    checked: Preflight, plans: dict[int, Plan], backend: str, resources: Resources, place: directories.RunDir
) -> Job:
    return Job(
        spec=checked.spec,
        plan=plans[max(plans)].to_dict(),
        plans={str(size): plan.to_dict() for size, plan in plans.items()},
        backend=backend,
        architecture=checked.shape.architecture,
        vocab_size=checked.shape.vocab_size,
        model_path=model_path(checked.spec),
        data_dir=str(checked.prepared.path),
        pad_id=checked.prepared.manifest["pad_id"],
        validation_rows=checked.prepared.rows("validation"),
        test_rows=checked.prepared.rows("test"),
        run_dir=str(place.path),
        checkpoint_dir=str(place.checkpoints),
        load_dir="",
        any_layout=False,
        hf_dir=str(place.hf),
        log_dir=str(place.logs),
        threads=checked.spec.cluster.omp_num_threads or resources.threads,
    )


def _reshape(job: Job, cluster: Cluster, place: directories.RunDir, console: Console) -> None:
    """Write the checkpoint that the run goes on from again, if it is of another layout."""
    directory = to_reshape(place.checkpoints, job.spec.checkpoint.resume, job.plan, place.remote is not None)
    if directory is None:
        return
    again = reshaping(job, directory)
    workers = again.plan["num_workers"]
    console.print(
        f"{directory} was written with {described(layout_of(again.plan))}; writing it again for "
        f"{described(layout_of(job.plan))} with {workers} CPU workers",
        highlight=False,
        soft_wrap=True,
    )
    resources = cluster.resources_of_a_worker("cpu", "auto", workers)
    wait_for(resources, workers, job.spec.cluster.wait_for_resources, console)
    monitor = Monitor((trainer := _trainer(again, cluster, resources)).hub, again, place, console)
    try:
        trainer.fit()
    except Exception as error:
        raise RunFailed(f"{directory} cannot be reshaped: {reason_of(error)}", where_to_look(place)) from error
    finally:
        monitor.close()
        _forget_former_runs(place)


def _fit(
    job: Job, trainer: Trainer, place: directories.RunDir, console: Console, began: float, lost: threading.Event
) -> int:
    resilience = job.spec.resilience
    monitor = Monitor(trainer.hub, job, place, console, lost)
    interrupts = Interrupts(lambda: monitor.ask_to_stop("interrupted"), resilience.grace_time)
    failure: BaseException | None = None
    try:
        with interrupts.noted(), _asking_at(resilience.max_time, began, monitor) as out_of_time:
            failure = trainer.fit().error
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # Ray Train's own SIGINT handler exits
        failure = error
    finally:
        monitor.close()
    if interrupts.received:
        return say_how_to_go_on("interrupted", EXIT_INTERRUPTED, job, place, console)
    if failure is not None:
        raise RunFailed(reason_of(failure), where_to_look(place)) from failure
    if out_of_time.is_set() and (newest_step(place) or 0) < job.plan["train_iters"]:
        return say_how_to_go_on(f"out of time (--max_time {resilience.max_time})", EXIT_STOPPED, job, place, console)
    conclude(job, place, console)
    return EXIT_OK


@contextmanager
def _asking_at(max_time: str | None, began: float, monitor: Monitor) -> Iterator[threading.Event]:
    """Ask the workers to stop at --max_time; the event says that it came to that."""
    event = threading.Event()

    def ask() -> None:
        event.set()
        monitor.ask_to_stop("time")

    timer = threading.Timer(max(0.0, began + seconds_of(max_time) - time.monotonic()), ask) if max_time else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield event
    finally:
        if timer is not None:
            timer.cancel()


@dataclass(frozen=True)
class Trainer:
    """A job ready to run.

    Args:
        hub: the actor that its ranks send metrics to.
        fit: Ray Train's fit().
    """

    hub: Any
    fit: Callable[[], Any]


def _trainer(job: Job, cluster: Cluster, resources: Resources) -> Trainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from raymb.recovery import ElasticPolicy, RestartPolicy
    from raymb.trainer import RaymbTrainer, SigtermCallback
    from raymb.worker import train_under_ray

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    resilience = job.spec.resilience
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # of the controller, off the step's path
    if resilience.hang_timeout:  # a worker whose whole process is stopped answers nobody
        seconds = min(600.0, max(60.0, resilience.hang_timeout))
        os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(seconds))
    failures = FailureConfig(
        max_failures=resilience.max_failures,
        max_preemption_failures=-1 if resilience.max_preemptions is None else resilience.max_preemptions,
    )
    run_dir = Path(job.run_dir)
    remote = Remote.of(job.spec.run.storage_path)
    filesystem, storage_path = remote.for_ray() if remote is not None else (None, str(run_dir.parent))
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    hub = Hub.options(scheduling_strategy=here).remote()  # it must not go with a worker's node
    sizes = sorted(int(size) for size in job.plans)
    scaling = ScalingConfig(
        num_workers=(sizes[0], sizes[-1]) if len(sizes) > 1 else job.plan["num_workers"],
        use_gpu=resources.gpus > 0,
        resources_per_worker=resources.to_dict(),
        elastic_resize_monitor_interval_s=_SECONDS_BETWEEN_RESIZES,
    )
    policies: dict[str, Any] = {"failure_policy": RestartPolicy(failures, hub, resilience.bad_loss == "rollback")}
    if len(sizes) > 1:
        # A size that there is no room for after all (a node has gone meanwhile) is given up sooner than in a minute.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
        policies["scaling_policy"] = ElasticPolicy(scaling, sizes, hub)
    trainer = RaymbTrainer(
        train_under_ray,
        train_loop_config={"job": job.to_json(), "hub": hub},
        torch_config=TorchConfig(backend=ACCELERATORS[job.backend].distributed_backend),
        scaling_config=scaling,
        run_config=RunConfig(
            # Ray Train's own directory is the run directory: a checkpoint can only be registered from inside it.
            name=run_dir.name,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=failures,
            callbacks=[SigtermCallback()],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": _worker_environment(job)},
        ),
        without=frozenset({"DatasetsCallback"} | (set() if cluster.joined else {"PlacementGroupCleanerCallback"})),
        policies=policies,
    )
    return Trainer(hub, trainer.fit)


_SECONDS_BETWEEN_RESIZES = 30.0
"""How often an elastic run asks for more workers. A resize costs a start of the workers."""


def _worker_environment(job: Job) -> dict[str, str]:
    """Variables of the worker processes: the defaults that training wants, then the driver's own settings of
    libraries and tokens, then --env."""
    defaults = {
        "OMP_NUM_THREADS": str(job.threads),
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",  # Megatron's overlap of communication with matrix products relies on it
        "TOKENIZERS_PARALLELISM": "false",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON) and value}
    return {**defaults, **passed_on, **job.spec.cluster.env}


_PASSED_ON = (
    "HF_",
    "HUGGING_FACE_",
    "NCCL_",
    "TORCH_",
    "TORCHINDUCTOR_",
    "TRITON_",
    "NVTE_",
    "WANDB_",
    "AWS_",
    "RAYMB_",
)

"""The driver: from a checked spec to workers that train, and back to an exit code."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raymb import run_dir as directories
from raymb.accelerator import ACCELERATORS
from raymb.bridge.checkpoint import iteration_dir, latest_step
from raymb.cluster import Cluster, Resources, check_storage, connect, start_coordinator, wait_for
from raymb.errors import EXIT_INTERRUPTED, EXIT_OK, RunFailed
from raymb.interrupt import noting_interrupts
from raymb.job import Job
from raymb.plan import Plan, make_plan
from raymb.preflight import Preflight, fingerprint, model_path, run_name
from raymb.telemetry.hub import Hub
from raymb.telemetry.monitor import Monitor


def run(checked: Preflight) -> int:
    """Train. Everything that can be refused is refused before the run directory is made.

    Returns:
        the exit code: 0 finished, 130 interrupted.

    Raises:
        UserError: the run directory or the cluster does not allow it.
        RunFailed: workers started and did not finish.
    """
    spec, console = checked.spec, Console(stderr=True)
    place = directories.RunDir.of(spec, run_name(checked))
    if _has_finished(checked, place):
        console.print(f"{place.path} has finished {checked.plan.train_iters} steps; raise --train_iters to go on")
        return EXIT_OK

    with connect(spec) as cluster:
        backend = cluster.backend(spec.run.backend)
        plan = make_plan(spec, checked.shape, rows=checked.prepared.rows("train"), backend=backend)
        resources = cluster.resources_of_a_worker(backend, spec.cluster.cpus_per_worker, plan.num_workers)
        wait_for(resources, plan.num_workers, spec.cluster.wait_for_resources, console)
        check_storage(checked.prepared.path.parent, cluster.joined)
        directories.claim(place, spec, plan.to_dict(), fingerprint(checked))
        try:
            job = _job(checked, plan, backend, resources, place)
            directories.write_atomically(place.job, job.to_json())
            environment = _worker_environment(job)
            start_coordinator()
            directories.write_atomically(place.data, json.dumps(_data(checked), indent=2) + "\n")
            trainer = _trainer(job, cluster, resources, environment)
            return _fit(job, trainer, place, console)
        finally:
            directories.release(place)


def _data(checked: Preflight) -> dict[str, Any]:
    return {"path": str(checked.prepared.path), **checked.prepared.manifest}


def _has_finished(checked: Preflight, place: directories.RunDir) -> bool:
    """Whether the same command ran to its end here before; one that died before its export goes on to write it."""
    spec, done = checked.spec, latest_step(place.checkpoints)
    complete = place.hf.exists() or not spec.checkpoint.export_hf
    again = spec.checkpoint.overwrite or spec.checkpoint.resume != "auto"
    return done is not None and done >= (checked.plan.train_iters or 0) and complete and not again


def _job(checked: Preflight, plan: Plan, backend: str, resources: Resources, place: directories.RunDir) -> Job:
    return Job(
        spec=checked.spec,
        plan=plan.to_dict(),
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
        hf_dir=str(place.hf),
        log_dir=str(place.logs),
        threads=checked.spec.cluster.omp_num_threads or resources.threads,
    )


def _fit(job: Job, trainer: Trainer, place: directories.RunDir, console: Console) -> int:
    monitor = Monitor(trainer.hub, job, place, console)
    interrupted = threading.Event()
    failure: BaseException | None = None
    try:
        with noting_interrupts(interrupted):
            failure = trainer.fit().error
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # Ray Train's own SIGINT handler exits
        failure = error
    finally:
        monitor.close()
    if interrupted.is_set():
        return _say_how_to_go_on(job, place, console)
    if failure is not None:
        raise RunFailed(_reason(failure), f"the workers' logs: {place.logs}") from failure
    _conclude(job, place, console)
    return EXIT_OK


@dataclass(frozen=True)
class Trainer:
    """A job ready to run.

    Args:
        hub: the actor that its ranks send metrics to.
        fit: Ray Train's fit().
    """

    hub: Any
    fit: Callable[[], Any]


def _trainer(job: Job, cluster: Cluster, resources: Resources, environment: dict[str, str]) -> Trainer:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    from raymb.trainer import LeanTorchTrainer
    from raymb.worker import train_under_ray

    logging.getLogger("ray.train").setLevel(logging.WARNING)
    run_dir = Path(job.run_dir)
    hub = Hub.remote()
    trainer = LeanTorchTrainer(
        train_under_ray,
        train_loop_config={"job": job.to_json(), "hub": hub},
        torch_config=TorchConfig(backend=ACCELERATORS[job.backend].distributed_backend),
        scaling_config=ScalingConfig(
            num_workers=job.plan["num_workers"], use_gpu=resources.gpus > 0, resources_per_worker=resources.to_dict()
        ),
        run_config=RunConfig(
            # Ray Train's own directory is the run directory: a checkpoint can only be registered from inside it.
            name=run_dir.name,
            storage_path=str(run_dir.parent),
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": environment},
        ),
        without=frozenset({"DatasetsCallback"} | (set() if cluster.joined else {"PlacementGroupCleanerCallback"})),
    )
    return Trainer(hub, trainer.fit)


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


def _reason(error: BaseException) -> str:
    """The worker failure that caused the others, in one line: a peer's closed connection is a consequence."""
    failures = sorted(getattr(error, "worker_failures", {}).items())
    if not failures:
        return _last_line(error)
    causes = [item for item in failures if not _CONSEQUENCE.search(str(item[1]))]
    rank, failure = (causes or failures)[0]
    cause = getattr(failure, "_base_exc", failure)  # Ray Train wraps it together with its traceback
    return f"worker {rank} failed: {type(cause).__name__}: {_last_line(cause)}"


_CONSEQUENCE = re.compile(
    r"connection (closed|reset)|broken pipe|remote process exited|NCCL (communicator|timeout)", re.I
)


def _last_line(error: object) -> str:
    """What an exception says, or the line of a traceback that says it: the last one that is not indented."""
    lines = [line for line in str(error).strip().splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1] if lines else type(error).__name__


def _say_how_to_go_on(job: Job, place: directories.RunDir, console: Console) -> int:
    step = latest_step(place.checkpoints)
    if step is None:
        console.print("interrupted before the first checkpoint; start again with the same command")
        return EXIT_INTERRUPTED
    settings = job.spec.checkpoint
    change = "" if not settings.overwrite and settings.resume == "auto" else " with --resume auto and no --overwrite"
    console.print(f"interrupted; the same command{change} goes on from step {step}")
    console.print(f"  {'checkpoint':<19}{iteration_dir(place.checkpoints, step)}", highlight=False, soft_wrap=True)
    return EXIT_INTERRUPTED


def _conclude(job: Job, place: directories.RunDir, console: Console) -> None:
    """Print where everything lies, and the answers to the sample prompt if there is one."""
    step = latest_step(place.checkpoints) or 0
    if step < job.plan["train_iters"]:
        console.print(f"stopped at step {step} of {job.plan['train_iters']}; the same command goes on from there")
    elif job.spec.run.sample_prompt and place.hf.exists():
        from raymb.sample import print_answers

        print_answers(job, console)
    places = {
        "metrics": place.metrics,
        "checkpoint": iteration_dir(place.checkpoints, step),
        "Hugging Face model": place.hf if place.hf.exists() else None,
        "TensorBoard": place.tensorboard,
        "workers' logs": place.logs,
    }
    for name, path in places.items():
        if path is not None:
            console.print(f"  {name:<19}{path}", highlight=False, soft_wrap=True)

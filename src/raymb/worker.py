"""What each rank runs, top to bottom. The same code on NCCL and gloo, under Ray Train and under torchrun."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from raymb.errors import StorageError, WorkersStopped
from raymb.rank import interrupt
from raymb.rank.accelerator import ACCELERATORS
from raymb.rank.progress import Progress
from raymb.rank.stopping import STARTS_AGAIN
from raymb.run.job import Job
from raymb.run.unverified import LeftToExport
from raymb.runtime.importing import importing
from raymb.telemetry import startup
from raymb.telemetry.records import Emit, RankStatus


def train(
    job: Job, progress: Progress, emit: Emit, register: Callable[[str, int], None], stop: Any
) -> LeftToExport | None:
    """Fine-tune with Bridge's own pretrain(), in a process group that exists.

    Args:
        job: the resolved run.
        progress: is told what this rank does.
        emit: takes one metrics record (a dict of plain values) and returns at once.
        register: called on every rank with (iteration directory, step) after a checkpoint is whole.
        stop: the StopTogether of this rank.

    Returns:
        on rank 0 of a training that has come to its end, what is left to do for its exports (Exports.conclude).
    """
    config, hf_bridge, losses = prepare(job, progress, emit)
    import torch.distributed as dist
    from megatron.bridge.training.pretrain import pretrain

    from raymb.bridge import checkpoint_manager
    from raymb.bridge.bad_loss import LossSum
    from raymb.bridge.baseline import validated_first
    from raymb.bridge.callbacks import HuggingFaceExport, make_callbacks
    from raymb.bridge.forward import counting_forward_step
    from raymb.bridge.saving import Saving
    from raymb.export.during import Exports

    def loaded(chunks: Any) -> Any:
        emit(startup.began(startup.OPTIMIZER))
        return chunks

    config.model.register_pre_wrap_hook(loaded)
    saving = Saving(job, progress, emit, register, losses)
    config.checkpoint.custom_manager_class = checkpoint_manager.install(saving)
    spikes = LossSum()
    keep_loss = spikes.parts.append if job.spec.resilience.loss_spike else None
    forward_step, counter = counting_forward_step(job, progress.beat, keep_loss)
    callbacks = make_callbacks(job, counter, spikes, emit, saving, stop)
    exporting, exports = HuggingFaceExport(job, hf_bridge, emit, progress), None
    if job.spec.checkpoint.export_hf:
        callbacks.append(exporting)
        saving.exports = exports = Exports(job, emit, progress.beat) if dist.get_rank() == 0 else None
    try:
        with validated_first(job):
            pretrain(config, forward_step, callbacks=[] if job.task == "reshape" else callbacks)
    except SystemExit as exit:  # Bridge leaves its loop this way on exit_interval
        if exit.code:
            raise
    finally:
        stop.close()
        saving.close()
        if exports is not None:
            exports.close()  # of its checkpoints those that are not there are made after the training, without its GPUs
    saving.check_published()
    ended = exports is not None and exporting.last_step is not None
    return LeftToExport(exporting.last_step or 0, exporting.written) if ended else None


def export(job: Job, progress: Progress, emit: Emit) -> LeftToExport | None:
    """Write the weights of the job's load_dir as a Hugging Face model, each rank its part.

    Returns:
        on rank 0, what is left to do: to merge and to verify what was written.
    """
    from raymb.bridge.activation import activate

    emit({"kind": "phase", "text": "importing Megatron"})
    activate(job)
    import torch.distributed as dist

    from raymb.bridge.export import write_results
    from raymb.bridge.from_checkpoint import load_model

    progress.enter("loading")
    emit({"kind": "phase", "text": "loading the checkpoint"})
    hf_bridge, model = load_model(job)
    progress.enter("exporting")
    emit({"kind": "phase", "text": "writing the export"})
    written = write_results(hf_bridge, model, job, progress)
    return LeftToExport(job.train_iters, written) if dist.get_rank() == 0 else None


def prepare(job: Job, progress: Progress, emit: Emit) -> tuple[Any, Any, list[list[float]]]:
    """From a fresh process to Bridge's ConfigContainer, the bridge to the Hugging Face model, and the validation losses
    up to the checkpoint that training resumes from."""
    from raymb.bridge.activation import activate

    emit({"kind": "phase", "text": "importing Megatron"})
    emit(startup.began(startup.IMPORTS))
    _read_ahead(job)
    activate(job)
    from raymb.bridge.config import build_config
    from raymb.checkpoints.fetching import fetch_what_is_read
    from raymb.checkpoints.manifest import losses_so_far
    from raymb.checkpoints.remote import RemoteCheckpoints
    from raymb.checkpoints.resuming import check_whole, steps_left_out, where_to_resume

    accelerator = ACCELERATORS[job.backend]
    progress.enter("loading")
    emit(startup.began(startup.MODEL))
    remote = RemoteCheckpoints.of(job)
    if remote is not None:
        fetch_what_is_read(remote)
    if job.load_dir:
        check_whole(job.load_dir, Path(job.load_dir).is_relative_to(Path(job.checkpoint_dir).parent), emit, remote)
    load_dir = job.load_dir or where_to_resume(job.checkpoint_dir, job.spec.checkpoint.resume, emit, remote)
    fresh = load_dir is not None and not _random_state_fits(job, load_dir, accelerator.distributed_backend)
    note = " with a fresh random state" if fresh else ""
    emit({"kind": "phase", "text": f"loading the {'checkpoint' if load_dir else 'model'}{note}"})
    own = load_dir is not None and Path(load_dir).is_relative_to(job.checkpoint_dir)
    losses = losses_so_far(load_dir) if load_dir is not None and own else []
    left_out = steps_left_out(job.checkpoint_dir, remote)
    return *build_config(job, load_dir, load_random_state=not fresh, left_out=left_out), losses


def _random_state_fits(job: Job, load_dir: str, backend: str) -> bool:
    """CUDA's random state means nothing to a CPU, nor the other way round; a checkpoint of Megatron-FSDP has one for
    each tensor parallel worker."""
    from raymb.checkpoints.manifest import read_manifest, written_with

    if written_with(load_dir) not in (backend, None):
        return False
    layout = (read_manifest(load_dir) or {}).get("layout", job.plan)
    return not job.spec.parallel.fsdp or layout["tensor_parallel_size"] == job.layout.tensor_parallel_size


def _read_ahead(job: Job) -> None:
    """While Megatron is imported, one worker of each machine has the model's files read, if they will be loaded: with
    adapters always, otherwise only where there is no checkpoint yet."""
    from raymb.rank.read_ahead import read_ahead

    begins = not (job.load_dir or any(Path(job.checkpoint_dir).glob("iter_*")))
    if os.environ.get("LOCAL_RANK", "0") == "0" and (begins or job.plan.adapters):
        read_ahead(Path(job.model_path))


def train_under_ray(config: dict[str, Any]) -> dict[str, Any] | None:
    """Ray Train's per-worker function.

    Returns:
        what raymb.driver.after_training is to do for the exports, and where.

    Raises:
        WorkersStopped: all ranks have left with a checkpoint, for Ray Train to start them again.
    """
    import ray
    import ray.train

    from raymb.data.sharing import fetch_rows
    from raymb.model.initial import fetch_model
    from raymb.rank.hang import HangWatch
    from raymb.telemetry.hub import Sender

    came, context = time.time(), ray.train.get_context()
    rank = context.get_world_rank()
    job = Job.from_json(config["job"]).of_size(context.get_world_size()).here()
    _log_to(Path(job.log_dir, f"worker-{rank:05d}.log"))
    progress = Progress()
    with importing():
        import torch.distributed  # noqa: F401
    accelerator = ACCELERATORS[job.backend]
    join_process_group(accelerator.distributed_backend, accelerator.device(), job.spec.resilience.nccl_timeout)
    sender = Sender(config["hub"], _status(rank, progress), listens=rank == 0, relay=_relay(config["hub"], context))
    progress.listeners.append(sender.wake)
    stop = make_stop()
    sender.on_command, sender.on_tick = stop.ask, lambda: stop.ask("preemption") if _preempted() else None
    # SIGTERM, which systems send before they take a machine away. The handler was installed when the process began
    # (raymb.driver.process_group): only its main thread can do that, and this is another one.
    interrupt.on_sigterm = lambda: stop.ask("preemption")
    peers = _processes_of_this_host(rank)
    watch = HangWatch(
        progress,
        job.spec.resilience.hang_timeout,
        Path(job.log_dir, f"stacks-{rank:05d}.txt"),
        lambda: peers,
        lambda others: sender.emit({"kind": "hang", "rank": rank, "in": progress.describe(), "others": others}),
    )
    emit = sender.emit if rank == 0 else _only_measurements(sender.emit)
    emit(startup.began(startup.JOINED, came))
    with progress.waiting():  # one downloads for its machine, whose transfers have times of their own
        fetch_rows(Path(job.data_dir).name, job.spec.run.storage_path)
        fetch_model(job.model_path, job.spec.run.storage_path)
    job = _with_local_model(job, context, progress)
    try:
        register = _register if Path(job.checkpoint_dir).is_relative_to(job.run_dir) else _mention
        left = train(job, progress, emit, register, stop) if job.task != "export" else export(job, progress, emit)
    finally:
        interrupt.on_sigterm = None
        watch.close()
        sender.close()
        _push_log(job, rank)
    if stop.left and stop.reason in STARTS_AGAIN:
        raise WorkersStopped(stop.reason, progress.step)
    return left and {"job": job.to_json(), "left": left, "node": ray.get_runtime_context().get_node_id()}


def _with_local_model(job: Job, context: Any, progress: Progress) -> Job:
    """The job with its model as a directory of this machine: one rank of each machine asks the hub, the others wait."""
    from torch.distributed.distributed_c10d import _get_default_store

    if Path(job.model_path).is_absolute():
        return job
    store: Any = _get_default_store()
    store, key = store.clone(), f"raymb/model/{context.get_node_rank()}"
    if context.get_local_rank() == 0:
        job = job.with_local_model()
        store.set(key, job.model_path)
    with progress.waiting():
        store.wait([key], timedelta(days=1))
    return replace(job, model_path=store.get(key).decode())


def make_stop() -> Any:
    """This rank's StopTogether over the process group's store."""
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store

    from raymb.rank.stopping import StopTogether

    store: Any = _get_default_store()
    return StopTogether(store.clone(), store, dist.get_rank(), dist.get_world_size())


def join_process_group(backend: str, device: Any, timeout: float) -> None:
    """Bridge skips its own init, device choice and barrier when the group exists.

    Args:
        timeout: seconds after which a collective fails that some rank has not joined.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def _relay(hub: Any, context: Any) -> Any:
    """Reference to the actor that this node's ranks send to; None for a run on one node."""
    import ray

    here, ranks = context.get_local_world_size(), context.get_world_size()
    return hub.relay.remote(ray.get_runtime_context().get_node_id(), here, -(-ranks // here)) if here < ranks else None


def _status(rank: int, progress: Progress) -> Callable[[], RankStatus]:
    """What the driver is told about a rank whenever it changes."""
    node, pid = socket.gethostname(), os.getpid()
    return lambda: {
        "kind": "rank",
        "rank": rank,
        "node": node,
        "pid": pid,
        "in": progress.phase,
        "step": progress.step,
    }


def _processes_of_this_host(rank: int) -> dict[int, int]:
    """Rank to process number of the other ranks here."""
    import torch.distributed as dist

    here = socket.gethostname()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (here, os.getpid()))
    return {other: pid for other, (host, pid) in enumerate(everyone) if host == here and other != rank}


def _only_measurements(emit: Emit) -> Emit:
    """For ranks other than the one that reports phases: all ranks go through the same ones."""
    return lambda record: emit(record) if record["kind"] not in ("phase", "began") else None


def _preempted() -> bool:
    """Whether Ray has said that a node of this run will be taken away. Ray's public function is a collective."""
    from raymb.runtime.ray_internals import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def _push_log(job: Job, rank: int) -> None:
    """Upload this rank's log where its machine has a workspace of its own; a failure to upload fails no training."""
    from raymb.run.directory import RunDir
    from raymb.run.mirror import Mirror

    with contextlib.suppress(StorageError):
        Mirror(RunDir.of(job.spec, Path(job.run_dir).name), (f"logs/worker-{rank:05d}.log",)).push()


def _mention(directory: str, step: int) -> None:
    """Ray Train registers no checkpoint from outside its storage (--output_dir); it is told of the step."""
    import ray.train

    ray.train.report({"step": step})


def _register(directory: str, step: int) -> None:
    """Tell Ray Train of a checkpoint that the ranks have already written, or uploaded, to its storage."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    storage: Any = ray.train.get_context().get_storage()
    name = Path(directory).parent.name, Path(directory).name
    ray.train.report(
        {"step": step},
        checkpoint=Checkpoint("/".join((storage.experiment_fs_path, *name)), storage.storage_filesystem),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def _log_to(file: Path) -> None:
    """Send all that this process prints, C++ included, to the run directory, so that the terminal stays readable."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stream = open(file, "ab", buffering=0)  # noqa: SIM115
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, encoding="utf-8")  # noqa: SIM115
    faulthandler.enable(file=2)
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # a line for each report

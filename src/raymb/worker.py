"""What each rank runs, top to bottom. The same code on NCCL and gloo, under Ray Train and under torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from raymb.accelerator import ACCELERATORS
from raymb.job import Job


def train(job: Job, emit: Callable[[dict[str, Any]], None], on_checkpoint: Callable[[str, int], None]) -> None:
    """Fine-tune with Bridge's own pretrain().

    Args:
        job: the resolved run.
        emit: takes one metrics record (a dict of plain values) and returns at once.
        on_checkpoint: called on every rank with (iteration directory, step) after a checkpoint is whole.
    """
    config, hf_bridge = prepare(job, emit)
    from megatron.bridge.training.pretrain import pretrain

    from raymb.bridge.callbacks import make_callbacks
    from raymb.bridge.forward import counting_forward_step

    forward_step, counter = counting_forward_step()
    try:
        pretrain(config, forward_step, callbacks=make_callbacks(job, hf_bridge, counter, emit, on_checkpoint))
    except SystemExit as exit:  # Bridge leaves its loop this way on exit_interval, exit_duration and a signal
        if exit.code:
            raise


def prepare(job: Job, emit: Callable[[dict[str, Any]], None]) -> tuple[Any, Any]:
    """From a fresh process to Bridge's ConfigContainer and the bridge to the Hugging Face model."""
    accelerator = ACCELERATORS[job.backend]
    from raymb.bridge import imports

    emit({"kind": "phase", "text": "importing Megatron"})
    _join_process_group(accelerator.distributed_backend, accelerator.device())  # Ray Train has done so already
    imports.install()
    accelerator.activate()
    imports.load_family(job.architecture)

    from raymb.bridge import fixes
    from raymb.bridge.checkpoint import where_to_resume, written_with
    from raymb.bridge.config import build_config

    fixes.apply_all()
    load_dir = where_to_resume(job.checkpoint_dir, job.spec.checkpoint.resume)
    fresh = load_dir is not None and written_with(load_dir) not in (accelerator.distributed_backend, None)
    note = " of the other backend, with a fresh random state" if fresh else ""
    emit({"kind": "phase", "text": f"loading the {'checkpoint' if load_dir else 'model'}{note}"})
    return build_config(job, load_dir, load_random_state=not fresh)


def train_under_ray(config: dict[str, Any]) -> None:
    """Ray Train's per-worker function."""
    import ray.train

    from raymb.telemetry.hub import Sender

    job = Job.from_json(config["job"])
    rank = ray.train.get_context().get_world_rank()
    _log_to(Path(job.log_dir, f"worker-{rank:05d}.log"))
    sender = Sender(config["hub"])
    try:
        on_checkpoint = _register if Path(job.checkpoint_dir).is_relative_to(job.run_dir) else _mention
        train(job, sender.emit if rank == 0 else _only_measurements(sender.emit), on_checkpoint)
    finally:
        sender.close()


def _only_measurements(emit: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Every rank goes through the same phases; one of them says so."""
    return lambda record: emit(record) if record["kind"] != "phase" else None


def _mention(directory: str, step: int) -> None:
    """Ray Train registers no checkpoint from outside its storage (--output_dir); it is told of the step."""
    import ray.train

    ray.train.report({"step": step})


def _register(directory: str, step: int) -> None:
    """Tell Ray Train of a checkpoint that the ranks have already written to shared storage."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    ray.train.report(
        {"step": step},
        checkpoint=Checkpoint.from_directory(directory),
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


def _join_process_group(backend: str, device: Any) -> None:
    """Bridge skips its own init, device choice and barrier when the group exists, as it does under Ray Train."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def main() -> None:
    """`torchrun -m raymb.worker JOB.json`: Bridge alone, with no Ray and no callback of raymb's, for comparison."""
    from importlib import import_module

    job = Job.from_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    config, _ = prepare(job, lambda record: None)
    forward_step = import_module("megatron.bridge.training.gpt_step").forward_step
    import_module("megatron.bridge.training.pretrain").pretrain(config, forward_step)


if __name__ == "__main__":
    main()

"""A run that resumes in another layout or precision.

Megatron's optimizer writes its state in the pieces of its own layout, which is fast and which any number of copies
(data and context parallel) can read. Another tensor, pipeline or expert layout cannot, nor can weights of another
precision: GPUs' bf16 and CPUs' fp32. Its other format, which all can read, gathers the whole state on every rank at
every save. So checkpoints are written in the first, and the one that such a run resumes from is resharded into the
second: by CPU workers in the old layout and precision that load it and save it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.format import newest, optimizer_layout, smallest_plan
from raymb.checkpoints.remote import RemoteCheckpoints, manifest_of
from raymb.rank.accelerator import precision_of
from raymb.run.job import Job


def described(job: Job) -> str:
    """TP 2 x PP 1 in bf16."""
    layout = job.layout
    experts = f" x EP {layout.expert_parallel_size}" if layout.expert_parallel_size > 1 else ""
    return f"TP {layout.tensor_parallel_size} x PP {layout.pipeline_parallel_size}{experts} in {precision_of(job)}"


def to_reshape(job: Job) -> Path | None:
    """The checkpoint that a run would resume from, if it must be resharded first."""
    remote = RemoteCheckpoints.of(job)
    directory = newest(job.checkpoint_dir, job.spec.checkpoint.resume, remote)
    manifest = manifest_of(directory, remote) if directory else None
    if manifest is None or "layout" not in manifest or manifest["any_layout"] or job.spec.parallel.fsdp:
        return None  # Megatron-FSDP's have whole tensors, which any layout reads its parts of
    same = manifest["layout"] == optimizer_layout(job.layout) and manifest["precision"] == precision_of(job)
    return None if same else directory


def reshaping(job: Job, directory: Path) -> Job:
    """The job that reshards a checkpoint, on CPU workers in the checkpoint's own layout."""
    job, manifest = job.on_cpus(), manifest_of(directory, RemoteCheckpoints.of(job))
    assert manifest is not None
    plan = smallest_plan(job.plan, manifest)
    spec = job.spec.changed(
        train={"precision": manifest["precision"]},
        checkpoint={"save_interval": 0, "export_hf": False, "keep_last": 0},
        optimizer={"lr_warmup_iters": 0},  # it must be shorter than no steps
    )
    return replace(
        job,
        spec=spec,
        plan=plan,
        plans={},
        load_dir=str(directory),
        task="reshape",
        checkpoint_dir=str(checkpoint.reshaped(job.checkpoint_dir)),
        validation_rows=0,
        test_rows=0,
    )

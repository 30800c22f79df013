"""A run that goes on in another layout or precision.

Megatron's optimizer writes its state in the pieces of its own layout, which is fast and which any number of copies
(data and context parallel) can read. Another tensor, pipeline or expert layout cannot, nor can weights of another
precision: GPUs' bf16 and CPUs' fp32. Its other format, which all can read, gathers the whole state on every rank at
every save. So checkpoints are written in the first, and the one that such a run goes on from is written again in the
second: by CPU workers in the old layout and precision that load it and save it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from raymb.checkpoints import manifest as checkpoint
from raymb.errors import RunDirError
from raymb.rank.accelerator import precision_of
from raymb.run.job import Job
from raymb.spec.sections import Model, RunSpec

_USUAL = RunSpec(model=Model(hf_model_path="any"))
_LAYOUT = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "virtual_pipeline_parallel_size",
    "expert_parallel_size",
    "expert_tensor_parallel_size",
    "num_layers_in_first_stage",
    "num_layers_in_last_stage",
)


def layout_of(plan: dict[str, Any]) -> dict[str, Any]:
    """What decides how the optimizer's state is cut into pieces, copies left out."""
    return {name: plan[name] for name in _LAYOUT}


def optimizer_format(spec: RunSpec) -> dict[str, bool]:
    """What decides what the optimizer's state is called in a checkpoint, in which there is no going over."""
    return {
        "megatron_fsdp": spec.parallel.fsdp,
        "distributed_optimizer": spec.optimizer.distributed_optimizer,
        "grad_reduce_in_fp32": spec.performance.grad_reduce_in_fp32,
    }


def check_format(checkpoint_dir: str | Path, spec: RunSpec, remote: bool = False) -> None:
    """
    Raises:
        RunDirError: the checkpoint that a run would go on from has the optimizer's state under other names.
    """
    directory = newest(checkpoint_dir, spec.checkpoint.resume, remote)
    manifest = (checkpoint.read_manifest(directory) if directory else None) or {}
    written, now = {**optimizer_format(_USUAL), **manifest.get("optimizer_format", {})}, optimizer_format(spec)
    for flag in [flag for flag in now if manifest and written[flag] != now[flag]]:
        before, asked = (f"--{'' if value else 'no_'}{flag}" for value in (written[flag], now[flag]))
        raise RunDirError(
            f"{directory} was written with {before}, and its optimizer cannot be gone on with under {asked}",
            f"give {before}, or another --experiment_name",
        )


def described(job: Job) -> str:
    """TP 2 x PP 1 in bf16."""
    plan = job.plan
    experts = f" x EP {plan['expert_parallel_size']}" if plan["expert_parallel_size"] > 1 else ""
    return f"TP {plan['tensor_parallel_size']} x PP {plan['pipeline_parallel_size']}{experts} in {precision_of(job)}"


def to_reshape(job: Job, remote: bool = False) -> Path | None:
    """The checkpoint that a run would go on from, if it must be written again for it.

    Args:
        remote: only the manifests of the run's own checkpoints are on this machine.
    """
    directory = newest(job.checkpoint_dir, job.spec.checkpoint.resume, remote)
    manifest = checkpoint.read_manifest(directory) if directory else None
    if manifest is None or "layout" not in manifest or manifest["any_layout"] or job.spec.parallel.fsdp:
        return None  # Megatron-FSDP's have whole tensors, which any layout reads its parts of
    same = manifest["layout"] == layout_of(job.plan) and manifest["precision"] == precision_of(job)
    return None if same else directory


def newest(checkpoint_dir: str | Path, resume: str, remote: bool = False) -> Path | None:
    """The newest checkpoint that looks whole, the run's own before those of --resume PATH."""
    for one in map(Path, checkpoint.candidates(checkpoint_dir, resume)):
        elsewhere = remote and one.is_relative_to(checkpoint_dir)
        if checkpoint.read_manifest(one) if elsewhere else not checkpoint.why_not_whole(one):
            return one
    return None


def smallest_plan(plan: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """The plan with as few workers as hold a checkpoint's model in its own pieces: one for each, or as many as there
    were where experts are spread over the copies (data and context parallel)."""
    plan = {**plan, **manifest["layout"]}
    copies = 1 if plan["expert_parallel_size"] == 1 else manifest["copies"]
    return {
        **plan,
        "num_workers": plan["tensor_parallel_size"] * plan["pipeline_parallel_size"] * copies,
        "data_parallel_size": copies,
        "context_parallel_size": 1,
        "micro_batch_size": 1,
        "micro_batches": plan["global_batch_size"] // copies,
        "sequence_parallel": False,
        "recompute": "none",
        "optimizer_offload": 0.0,
    }


def reshaping(job: Job, directory: Path) -> Job:
    """The job that writes a checkpoint again, in its own layout, on CPU workers."""
    job, manifest = job.on_cpus(), checkpoint.read_manifest(directory)
    assert manifest is not None
    plan = {**smallest_plan(job.plan, manifest), "train_iters": manifest["step"]}
    train = job.spec.train.model_copy(update={"precision": manifest["precision"]})
    evaluation = job.spec.evaluation.model_copy(update={"eval_iters": 0})
    settings = job.spec.checkpoint.model_copy(
        update={"save_interval": 0, "export_hf": False, "keep_last": None, "keep_best": None}
    )
    optimizer = job.spec.optimizer.model_copy(update={"lr_warmup_iters": 0})  # no warm-up is as long as no step
    spec = job.spec.model_copy(
        update={"train": train, "evaluation": evaluation, "checkpoint": settings, "optimizer": optimizer}
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

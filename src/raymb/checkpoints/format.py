"""In which pieces a checkpoint has the optimizer's state, which is what another layout may not be able to read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.remote import RemoteCheckpoints, candidates, manifest_of
from raymb.errors import RunDirError
from raymb.plan import Layout, Plan
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


def optimizer_layout(layout: Layout) -> dict[str, Any]:
    """What decides how the optimizer's state is cut into pieces, copies left out."""
    return {name: getattr(layout, name) for name in _LAYOUT}


def optimizer_format(spec: RunSpec) -> dict[str, bool]:
    """What decides the names of the optimizer's state in a checkpoint: state under other names cannot be loaded."""
    return {
        "megatron_fsdp": spec.parallel.fsdp,
        "distributed_optimizer": spec.optimizer.distributed_optimizer,
        "grad_reduce_in_fp32": spec.performance.grad_reduce_in_fp32,
    }


def check_format(checkpoint_dir: str | Path, spec: RunSpec, remote: RemoteCheckpoints | None = None) -> None:
    """
    Args:
        remote: where the run's own checkpoints are, if that is no file system.

    Raises:
        RunDirError: the checkpoint that a run would resume from has the optimizer's state under other names.
    """
    directory = newest(checkpoint_dir, spec.checkpoint.resume, remote)
    manifest = (manifest_of(directory, remote) if directory else None) or {}
    written, now = {**optimizer_format(_USUAL), **manifest.get("optimizer_format", {})}, optimizer_format(spec)
    for flag in [flag for flag in now if manifest and written[flag] != now[flag]]:
        before, asked = (f"--{'' if value else 'no_'}{flag}" for value in (written[flag], now[flag]))
        raise RunDirError(
            f"{directory} was written with {before}, and its optimizer cannot be resumed under {asked}",
            f"give {before}, or another --experiment_name",
        )


def newest(checkpoint_dir: str | Path, resume: str, remote: RemoteCheckpoints | None = None) -> Path | None:
    """The newest checkpoint that looks whole, the run's own before those of --resume PATH."""
    for one in map(Path, candidates(checkpoint_dir, resume, remote)):
        elsewhere = remote is not None and remote.holds(one)
        if manifest_of(one, remote) if elsewhere else not checkpoint.why_not_whole(one):
            return one
    return None


def smallest_plan(plan: Plan, manifest: dict[str, Any]) -> Plan:
    """The plan with as few workers as hold a checkpoint's model in its own pieces: one for each, or as many as there
    were where experts are spread over the copies (data and context parallel)."""
    layout = replace(plan.layout, **manifest["layout"])
    copies = 1 if layout.expert_parallel_size == 1 else manifest["copies"]
    layout = replace(
        layout,
        num_workers=layout.tensor_parallel_size * layout.pipeline_parallel_size * copies,
        data_parallel_size=copies,
        context_parallel_size=1,
        micro_batch_size=1,
        sequence_parallel=False,
        recompute="none",
        optimizer_offload=0.0,
    )
    return replace(plan, layout=layout, train_iters=manifest["step"])

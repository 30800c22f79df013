"""Where `--cuda_graphs auto` may record layers: in what has been trained with and without them, to the same losses."""

from __future__ import annotations

from raymb.model.shape import ModelShape
from raymb.plan.rules import family
from raymb.plan.sizes import Layout, layers_per_stage
from raymb.spec.conflicts import without_cuda_graphs
from raymb.spec.sections import RunSpec

GAIN = 1.15
"""Times as fast that an estimated step must be with graphs, for `auto` to take them."""
_MOST = 384
"""Recorded passes of a worker, which take time to record and memory of the driver's; as many have been measured."""
_CHUNKS = 2
"""Virtual stages, at most: more have not been measured."""
_HARMLESS = ("train", "scheduler", "logger", "checkpoint", "validation", "dataset", "tokenizer")
"""Sections of the ConfigContainer that change nothing inside of a layer."""


def why_not(spec: RunSpec, shape: ModelShape) -> str:
    """Why `auto` leaves them off, whatever the layout; empty where the layout decides."""
    return next((f"{why} with them" for why in without_cuda_graphs(spec)), "") or _untried(spec, shape)


def _untried(spec: RunSpec, shape: ModelShape) -> str:
    performance, optimizer = spec.performance, spec.optimizer
    overrides = [path for path in spec.overrides if path.partition(".")[0] not in _HARMLESS]
    if spec.train.precision == "fp32":
        return "they are recorded with bf16 weights, and --precision is fp32"
    untried = {
        f"the model's {shape.architecture}": not family.has_graphs(shape),
        "an elastic run": any(":" in str(one) for one in (spec.parallel.num_workers, spec.parallel.data_parallel_size)),
        "--freeze or --unfreeze": spec.train.freezes,
        f"--optimizer_offload {optimizer.optimizer_offload}": optimizer.optimizer_offload not in ("auto", 0.0),
        f"--optimizer_moments {optimizer.optimizer_moments}": optimizer.optimizer_moments != "fp32",
        "--no_distributed_optimizer": not optimizer.distributed_optimizer,
        "--no_grad_reduce_in_fp32": not performance.grad_reduce_in_fp32,
        "--no_fused_gradient_accumulation": not performance.fused_gradient_accumulation,
        "--no_fused_activation": not performance.fused_activation,
        "--no_fused_rope": not performance.fused_rope,
        f"--profile_steps {performance.profile_steps}": performance.profile_steps is not None,
        f"override {next(iter(overrides), '')}": bool(overrides),
    }
    return next((f"{what} has not been tried with them" for what, given in untried.items() if given), "")


def recorded(layout: Layout) -> int:
    """Micro-batches of which each layer is recorded: one, or all of a step where stages take turns."""
    return 1 if layout.pipeline_parallel_size == 1 else layout.micro_batches


def against(layout: Layout, shape: ModelShape) -> str:
    """Why `auto` does not record a layout that breaks no rule; empty where it may."""
    passes = max(layers_per_stage(layout, shape.num_layers)) * recorded(layout)
    chunks = layout.virtual_pipeline_parallel_size or 1
    untried = {
        "--recompute full": layout.recompute == "full",
        "an optimizer on the host": layout.optimizer_offload > 0,
        "tensor parallel without sequence parallel": layout.tensor_parallel_size > 1 and not layout.sequence_parallel,
        f"a number of {chunks} virtual stages": chunks > _CHUNKS,
        f"a worker with {passes} recorded passes (layers of a stage x micro-batches)": passes > _MOST,
    }
    return next((f"{what} has not been tried with them" for what, given in untried.items() if given), "")

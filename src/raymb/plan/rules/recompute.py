"""Which layers and modules can be computed again, or wait on the host. Megatron-Core 0.19.2 does it in
core/recompute.py (whole layers), transformer_layer.py and moe/ (modules), and Transformer Engine's cpu_offload.py."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.rules.run import Run
from raymb.plan.sizes import DetailedLayout, layers_per_stage

_OF_EXPERTS = ("layernorm", "moe", "moe_act", "shared_experts")
"""Modules of sparse layers. Transformer Engine joins a dense layer's norms with the matrices after them, so that
`layernorm` finds none there."""


def of_run(run: Run) -> Iterator[str]:
    """The rules of recomputation; only where there is a layout, as they count on stages that share the layers."""
    if run.layout is not None:
        yield from of_layout(run.layout, run.shape)


def of_layout(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    """The same of a layout that breaks no other rule."""
    yield from _whole_layers(layout, shape)
    yield from _modules(layout, shape)
    yield from _offload(layout, shape)


def _whole_layers(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    chunk = min(layers_per_stage(layout, shape.num_layers)) // (layout.virtual_pipeline_parallel_size or 1)
    if layout.recompute == "full" and layout.recompute_num_layers > chunk:
        what = "a chunk" if layout.virtual_pipeline_parallel_size else "a stage"
        yield (
            f"--recompute_num_layers {layout.recompute_num_layers} must not be more than the {chunk} layers of {what}; "
            f"lower it, or leave it out"
        )


def _modules(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    for module in layout.recompute_modules:
        if module in _OF_EXPERTS and not shape.num_experts:
            yield (
                f"--recompute_modules {module} needs a mixture-of-experts model, and {shape.architecture} has no "
                f"experts; leave it out"
            )
        elif module == "shared_experts" and not shape.shared_experts_size:
            yield f"--recompute_modules shared_experts: {shape.architecture} has none; leave it out"
        elif module == "mlp" and not shape.dense_layers:
            yield f"--recompute_modules mlp: every layer of {shape.architecture} has experts; write moe"
        elif module == "mla_up_proj" and shape.attention != "mla":
            yield f"--recompute_modules mla_up_proj needs latent attention, and the model's is {shape.attention}"


def _offload(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    flag = f"--activation_offload_layers {layout.activation_offload_layers}"
    if not layout.activation_offload_layers:
        return
    if layout.pipeline_parallel_size > 1:
        yield (
            f"{flag} needs --pipeline_parallel_size 1, and it is {layout.pipeline_parallel_size}; recompute layers "
            "instead"
        )
    if layout.activation_offload_layers >= shape.num_layers:
        yield f"{flag} must be less than the model's {shape.num_layers} layers"

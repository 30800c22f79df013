"""Pipeline stages share the layers, and virtual ones the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.multiples import divisors, listed, nearest_multiples
from raymb.plan.sizes import DetailedLayout


def layer_counts(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    layers, stages, uneven = shape.num_layers, layout.pipeline_parallel_size, _uneven_flags(layout)
    if stages == 1:
        for flag, size in uneven.items():
            yield f"--{flag} {size} needs --pipeline_parallel_size of 2 or more, and it is 1; leave --{flag} out"
    elif stages > layers:
        yield f"--pipeline_parallel_size {stages} must not be more than the model's {layers} layers"
    elif not uneven and layers % stages:
        yield (
            f"--pipeline_parallel_size {stages} must divide the model's {layers} layers; set it to one of "
            f"{listed(divisors(layers))}, or give --num_layers_in_first_stage or --num_layers_in_last_stage for "
            f"uneven stages"
        )
    elif uneven:
        left, middle = layers - sum(uneven.values()), stages - len(uneven)
        given = " and ".join(f"--{flag} {size}" for flag, size in uneven.items())
        if left < 0 or (middle > 0) != (left > 0) or (middle and left % middle):
            yield (
                f"{given} of {layers} layers leave {left} for the other {middle} of --pipeline_parallel_size {stages} "
                f"stages, and these must share them evenly with at least 1 each; change --{next(iter(uneven))}"
            )


def chunks(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    virtual, stages = layout.virtual_pipeline_parallel_size, layout.pipeline_parallel_size
    if not virtual:
        return
    flag = f"--virtual_pipeline_parallel_size {virtual}"
    if stages == 1:
        yield f"{flag} needs --pipeline_parallel_size of 2 or more, and it is 1; leave it out"
        return
    uneven = _uneven_flags(layout)
    for name, size in uneven.items():
        if size % virtual:
            yield f"{flag} must divide --{name} {size}; change one of the two flags"
    left, middle = shape.num_layers - sum(uneven.values()), stages - len(uneven)
    if middle and left > 0 and left % middle == 0 and left // middle % virtual:
        yield (
            f"{flag} must divide the {left // middle} layers of a pipeline stage ({left} layers / {middle} stages); "
            f"set it to one of {listed(divisors(left // middle)[1:]) or 'none'}, or leave it out"
        )


def micro_batches(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    stages, product = layout.pipeline_parallel_size, layout.micro_batch_size * layout.data_parallel_size
    if not layout.virtual_pipeline_parallel_size or not product or layout.global_batch_size % product:
        return
    count = layout.global_batch_size // product
    if count % stages:
        yield (
            f"--virtual_pipeline_parallel_size {layout.virtual_pipeline_parallel_size} needs the {count} "
            "micro-batches of a step to be a "
            f"multiple of --pipeline_parallel_size {stages}; set --global_batch_size to "
            f"{nearest_multiples(layout.global_batch_size, product * stages)}"
        )


def fsdp(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    if layout.megatron_fsdp != "none" and layout.pipeline_parallel_size > 1:
        yield (
            f"--pipeline_parallel_size {layout.pipeline_parallel_size} must be 1 with --megatron_fsdp "
            f"{layout.megatron_fsdp}, which "
            f"Megatron-Core 0.19.2 does not cut into stages; set it to 1"
        )


def _uneven_flags(layout: DetailedLayout) -> dict[str, int]:
    given = {
        "num_layers_in_first_stage": layout.num_layers_in_first_stage,
        "num_layers_in_last_stage": layout.num_layers_in_last_stage,
    }
    return {flag: size for flag, size in given.items() if size is not None}

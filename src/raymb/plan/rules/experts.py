"""Experts have a grid of their own over the same workers, and settings of their own (section `moe`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.multiples import divisors, listed, nearest_multiples
from raymb.plan.rules.run import Run
from raymb.plan.sizes import DetailedLayout
from raymb.spec.training import FLEX_DISPATCHERS, Moe


def split(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    experts, flag = shape.num_experts, f"--expert_parallel_size {layout.expert_parallel_size}"
    if not experts:
        if layout.expert_parallel_size > 1:
            yield f"{flag} needs a mixture-of-experts model, and {shape.architecture} has no experts; leave it out"
        if layout.expert_tensor_given and layout.expert_tensor_parallel_size > 1:
            yield (
                f"--expert_tensor_parallel_size {layout.expert_tensor_parallel_size} needs a mixture-of-experts "
                "model, and "
                f"{shape.architecture} has no experts; leave it out"
            )
        return
    if experts % layout.expert_parallel_size:
        yield (
            f"{flag} must divide the model's {experts} experts; set --expert_parallel_size to one of "
            f"{listed(divisors(experts))}"
        )
    inner = shape.moe_intermediate_size or shape.intermediate_size
    if inner % layout.expert_tensor_parallel_size:
        yield (
            f"--expert_tensor_parallel_size {layout.expert_tensor_parallel_size} (default: the tensor parallel size) "
            "must divide an "
            f"expert's feed-forward size {inner}; set it to one of {listed(divisors(inner))}"
        )


def workers(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    product = layout.expert_tensor_parallel_size * layout.expert_parallel_size * layout.pipeline_parallel_size
    if not shape.num_experts or layout.num_workers % product == 0:
        return
    way_out = f"--num_workers to {nearest_multiples(layout.num_workers, product)}"
    if (copies := layout.copies_asked) and layout.data_parallel_size:
        step = product // math.gcd(product, layout.model_parallel_size)
        way_out = f"--data_parallel_size to {nearest_multiples(copies, step)}, with as many workers as that makes"
    yield (
        f"--num_workers {layout.num_workers} must be a multiple of expert tensor x expert x pipeline parallel = "
        f"{layout.expert_tensor_parallel_size} x {layout.expert_parallel_size} x {layout.pipeline_parallel_size} = "
        f"{product}; set {way_out}, or lower "
        f"--expert_parallel_size or --expert_tensor_parallel_size"
    )


def sequence(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    if shape.num_experts and layout.tensor_parallel_size > 1 and not layout.sequence_parallel:
        yield (
            f"--tensor_parallel_size {layout.tensor_parallel_size} of a mixture-of-experts model needs "
            "--sequence_parallel true"
        )


def settings(run: Run) -> Iterator[str]:
    """Of the section `moe` (Megatron-Core 0.19.2, transformer_config.py and moe/token_dispatcher.py)."""
    moe, shape, layout = run.spec.moe, run.shape, run.layout
    if layout is None:
        return
    given = [flag for flag, field in Moe.model_fields.items() if getattr(moe, flag) != field.default]
    if given and not shape.num_experts:
        yield (
            f"--{given[0]} needs a mixture-of-experts model, and {shape.architecture} has no experts; leave "
            f"{', '.join(f'--{flag}' for flag in given)} out"
        )
        return
    if moe.moe_shared_expert_overlap and not shape.shared_experts_size:
        yield f"--moe_shared_expert_overlap: {shape.architecture} has no shared experts; leave it out"
    if moe.moe_shared_expert_overlap and "shared_experts" in layout.recompute_modules:
        yield "--moe_shared_expert_overlap and --recompute_modules shared_experts exclude each other; drop one of them"
    if (
        moe.moe_token_dispatcher in FLEX_DISPATCHERS
        and layout.expert_parallel_size * layout.expert_tensor_parallel_size == 1
    ):
        yield (
            f"--moe_token_dispatcher {moe.moe_token_dispatcher} moves tokens between workers, and all experts are on "
            f"each; leave it out, or raise --expert_parallel_size"
        )

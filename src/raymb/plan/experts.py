"""What the section `moe` asks of the model and of the layout."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.sizes import Layout
from raymb.spec.training import Moe

FLEX = ("deepep", "hybridep")
"""Dispatchers with kernels of the package deep_ep."""


def expert_problems(moe: Moe, layout: Layout, shape: ModelShape) -> Iterator[str]:
    """A sentence for every setting that the model or the layout cannot have (Megatron-Core 0.19.2,
    transformer_config.py and moe/token_dispatcher.py)."""
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
    if moe.moe_token_dispatcher in FLEX and layout.expert * layout.expert_tensor == 1:
        yield (
            f"--moe_token_dispatcher {moe.moe_token_dispatcher} moves tokens between workers, and all experts are on "
            f"each; leave it out, or raise --expert_parallel_size"
        )

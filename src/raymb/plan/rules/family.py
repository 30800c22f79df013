"""What one family of models cannot have, or has not been tried with (raymb.model.families)."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.families import FAMILIES, family_of
from raymb.model.shape import ModelShape
from raymb.plan.sizes import Layout


def only_one(layout: Layout, shape: ModelShape) -> Iterator[str]:
    for name, why in family_of(shape.architecture).must_be_one.items():
        flag, size = f"--{name}_parallel_size", getattr(layout, name)
        if size > 1:
            yield f"{flag} {size} must be 1 for {shape.architecture}: {why}; set {flag} to 1"


def has_whole_experts(shape: ModelShape) -> bool:
    """Whether tensor parallel workers cannot share an expert of the family."""
    return "expert_tensor" in family_of(shape.architecture).must_be_one


def graphs(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if layout.cuda_graphs and not family_of(shape.architecture).cuda_graphs:
        compared = sorted(name for one in FAMILIES if one.cuda_graphs for name in one.architectures)
        yield (
            f"--cuda_graphs is for {', '.join(compared)}, and has not been tried with the model's "
            f"{shape.architecture}; leave it out"
        )

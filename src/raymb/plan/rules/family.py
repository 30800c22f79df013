"""What one family of models cannot have, or has not been tried with (raymb.model.families)."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.families import FAMILIES, family_of
from raymb.model.shape import ModelShape
from raymb.plan.sizes import DetailedLayout


def only_one(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    for flag, why in must_be_one(shape).items():
        if (size := getattr(layout, flag) or 1) > 1:
            yield f"--{flag} {size} must be 1 for {shape.architecture}: {why}; set --{flag} to 1"


def must_be_one(shape: ModelShape) -> dict[str, str]:
    """Flags of parallel sizes, each with why."""
    family = family_of(shape.architecture)
    return {**family.must_be_one, **({} if shape.num_experts else family.only_with_experts)}


def settings(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    for one in shape.other_settings:
        yield (
            f"config.json's {one} is not computed for {shape.architecture}: Bridge 0.6.2 leaves it out, and another "
            f"model would be trained; give one without it to --hf_model_path"
        )


def has_whole_experts(shape: ModelShape) -> bool:
    """Whether tensor parallel workers cannot share an expert of the family."""
    return "expert_tensor_parallel_size" in family_of(shape.architecture).must_be_one


def has_graphs(shape: ModelShape) -> bool:
    """Whether training with CUDA graphs has been compared with training without them."""
    return family_of(shape.architecture).cuda_graphs


def graphs(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    if layout.cuda_graphs and not has_graphs(shape):
        compared = sorted(name for one in FAMILIES if one.cuda_graphs for name in one.architectures)
        yield (
            f"--cuda_graphs is for {', '.join(compared)}, and has not been tried with the model's "
            f"{shape.architecture}; leave it out"
        )

"""Which parameters --freeze and --unfreeze leave as they are, by their Hugging Face names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from raymb.model.shape import ModelShape
from raymb.plan.adapters import matrices_of
from raymb.spec.training import Train

Shapes = Mapping[str, list[int]]
"""Name to shape of every tensor of the model's files."""


def is_frozen(name: str, train: Train) -> bool:
    """What --unfreeze names is trained; --unfreeze alone freezes everything else."""
    if not train.freezes or any(re.search(pattern, name) for pattern in train.unfreeze):
        return False
    return not train.freeze or any(re.search(pattern, name) for pattern in train.freeze)


def frozen_problems(train: Train, shape: ModelShape, tensors: Shapes) -> Iterator[str]:
    """A sentence for everything that the two flags cannot do with a model."""
    if shape.tower:
        yield (
            f"{_flags(train)} is for models of text, and {shape.architecture} has a vision part; set "
            f"model.freeze_vision_model=true or model.freeze_language_model=true instead"
        )
        return
    if not tensors:
        yield f"{_flags(train)} goes by the names in a model's safetensors files, and this one has none; convert it"
        return
    for flag, patterns in (("freeze", train.freeze), ("unfreeze", train.unfreeze)):
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in tensors):
                yield (
                    f"--{flag} {pattern!r} matches no parameter of {shape.architecture}, which has "
                    f"{', '.join(sorted(tensors)[:4])} and {len(tensors) - 4} others"
                )
    if all(is_frozen(name, train) for name in tensors):
        yield f"{_flags(train)} leaves no parameter of {shape.architecture} to train; name fewer"
    yield from _parts_of_one_matrix(train, shape, tensors)


def trained_line(train: Train, tensors: Shapes) -> str:
    """How much is trained."""
    sizes = {name: math.prod(shape) for name, shape in tensors.items()}
    count = sum(size for name, size in sizes.items() if not is_frozen(name, train))
    whole = sum(sizes.values())
    return f"{count:,} of the model's {whole:,} parameters to train, {count / whole:.2%} ({_flags(train)})"


def _parts_of_one_matrix(train: Train, shape: ModelShape, tensors: Shapes) -> Iterator[str]:
    """The first that are told apart of each kind."""
    for matrix in matrices_of(shape):
        first, *others = matrix.parts
        for name in tensors:
            together = [name.replace(first, other) for other in others] if f".{first}." in name else []
            frozen = {one: is_frozen(one, train) for one in (name, *together) if one in tensors}
            if len(set(frozen.values())) > 1:
                yield (
                    f"{_flags(train)} freezes {', '.join(one for one in frozen if frozen[one])} and trains "
                    f"{', '.join(one for one in frozen if not frozen[one])}: Megatron keeps them in one matrix "
                    f"({matrix.module}); freeze all of them, or none"
                )
                break


def _flags(train: Train) -> str:
    given = [("freeze", one) for one in train.freeze] + [("unfreeze", one) for one in train.unfreeze]
    return " ".join(f"--{flag} {pattern!r}" for flag, pattern in given)

"""Tensor parallel workers share the heads and the feed-forward layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raymb.model.families import family_of_type
from raymb.model.shape import ModelShape
from raymb.plan.multiples import divisors, listed
from raymb.plan.sizes import DetailedLayout


def heads(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    heads, groups, tensor = shape.num_attention_heads, shape.num_kv_heads, layout.tensor_parallel_size
    family = family_of_type(shape.model_type)
    queries = heads * (2 if family.gated_attention else 1)
    rows = (queries + 2 * groups) * shape.head_dim  # of one matrix: queries (and their gates), keys and values
    shared = shape.attention != "mla"
    apart = family.qk_norm == "all heads"  # workers with the same heads would have a norm's weights twice

    def fits(size: int) -> bool:
        return groups % size == 0 or (size % groups == 0 and not apart)

    valid = [size for size in divisors(heads) if not shared or (fits(size) and rows % size == 0)]
    change = f"set --tensor_parallel_size to one of {listed(valid)}"
    if heads % tensor:
        yield f"--tensor_parallel_size {tensor} must divide the model's {heads} attention heads; {change}"
    if shared and not fits(tensor):
        yield (
            f"--tensor_parallel_size {tensor} must be a divisor {'' if apart else 'or a multiple '}of the model's "
            f"{groups} key/value groups; {change}"
        )
    elif shared and heads % tensor == 0 and rows % tensor:
        yield (
            f"--tensor_parallel_size {tensor} must divide the {rows} rows of the model's matrix of queries, keys and "
            f"values (({queries} heads{'' if queries == heads else ' and gates'} + 2 x {groups} key/value groups) x "
            f"{shape.head_dim}); {change}"
        )


def states(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    """Of layers with states in the place of attention's keys and values, whose context parallel workers share heads."""
    tensor, context, held = layout.tensor_parallel_size, layout.context_parallel_size, shape.states
    wrong = [f"{name} {count}" for name, count in held.heads if count % (tensor * context)]
    if held.groups:
        name, count = held.groups
        of_worker = count // tensor
        if count % tensor or (of_worker % context and context % of_worker):
            wrong.append(f"{name} {count}")
    if not wrong:
        return
    product = f"--tensor_parallel_size {tensor}" + (f" x --context_parallel_size {context}" if context > 1 else "")
    counts = [count for _, count in (*held.heads, *([held.groups] if held.groups else []))]
    yield (
        f"{product} must divide config.json's {', '.join(wrong)}, by which workers share the layers that have states; "
        f"set --tensor_parallel_size to one of {listed(divisors(math.gcd(shape.num_attention_heads, *counts)))}"
        + (", and --context_parallel_size to 1" if context > 1 else "")
    )


def feed_forward(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    inner, tensor = shape.intermediate_size, layout.tensor_parallel_size
    if shape.dense_layers and inner % tensor:
        yield (
            f"--tensor_parallel_size {tensor} must divide the model's feed-forward size {inner}; "
            f"set --tensor_parallel_size to one of {listed(divisors(math.gcd(inner, shape.num_attention_heads)))}"
        )

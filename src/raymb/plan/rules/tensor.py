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
    queries = heads * (2 if family_of_type(shape.model_type).gated_attention else 1)
    rows = (queries + 2 * groups) * shape.head_dim  # of one matrix: queries (and their gates), keys and values
    shared = shape.attention != "mla"
    valid = [
        size
        for size in divisors(heads)
        if not shared or ((groups % size == 0 or size % groups == 0) and rows % size == 0)
    ]
    change = f"set --tensor_parallel_size to one of {listed(valid)}"
    if heads % tensor:
        yield f"--tensor_parallel_size {tensor} must divide the model's {heads} attention heads; {change}"
    if shared and groups % tensor and tensor % groups:
        yield (
            f"--tensor_parallel_size {tensor} must be a divisor or a multiple of the model's {groups} key/value "
            f"groups; {change}"
        )
    elif shared and heads % tensor == 0 and rows % tensor:
        yield (
            f"--tensor_parallel_size {tensor} must divide the {rows} rows of the model's matrix of queries, keys and "
            f"values (({queries} heads{'' if queries == heads else ' and gates'} + 2 x {groups} key/value groups) x "
            f"{shape.head_dim}); {change}"
        )


def states(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    """Of layers with states in the place of attention's keys and values."""
    tensor = layout.tensor_parallel_size
    wrong = [f"{name} {count}" for name, count in shape.states.heads if count % tensor]
    if wrong:
        common = math.gcd(shape.num_attention_heads, *(count for _, count in shape.states.heads))
        yield (
            f"--tensor_parallel_size {tensor} must divide config.json's {', '.join(wrong)}, by which tensor parallel "
            f"workers share the layers with states; set --tensor_parallel_size to one of {listed(divisors(common))}"
        )


def feed_forward(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    inner, tensor = shape.intermediate_size, layout.tensor_parallel_size
    if shape.dense_layers and inner % tensor:
        yield (
            f"--tensor_parallel_size {tensor} must divide the model's feed-forward size {inner}; "
            f"set --tensor_parallel_size to one of {listed(divisors(math.gcd(inner, shape.num_attention_heads)))}"
        )

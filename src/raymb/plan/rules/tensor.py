"""Tensor parallel workers share the heads and the feed-forward layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.multiples import divisors, listed
from raymb.plan.sizes import DetailedLayout


def heads(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    heads, groups, tensor = shape.num_attention_heads, shape.num_kv_heads, layout.tensor_parallel_size
    rows = (heads + 2 * groups) * shape.head_dim  # of one matrix: queries, keys and values
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
            f"values (({heads} heads + 2 x {groups} key/value groups) x {shape.head_dim}); {change}"
        )


def feed_forward(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    inner, tensor = shape.intermediate_size, layout.tensor_parallel_size
    if not shape.num_experts and inner % tensor:
        yield (
            f"--tensor_parallel_size {tensor} must divide the model's feed-forward size {inner}; "
            f"set --tensor_parallel_size to one of {listed(divisors(math.gcd(inner, shape.num_attention_heads)))}"
        )

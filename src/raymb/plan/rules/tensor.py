"""Tensor parallel workers share the heads and the feed-forward layer."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.multiples import divisors, listed
from raymb.plan.sizes import DetailedLayout


def heads(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    heads, groups, tensor = shape.num_attention_heads, shape.num_kv_heads, layout.tensor_parallel_size
    valid = [size for size in divisors(heads) if groups % size == 0 or size % groups == 0]
    change = f"set --tensor_parallel_size to one of {listed(valid)}"
    if heads % tensor:
        yield f"--tensor_parallel_size {tensor} must divide the model's {heads} attention heads; {change}"
    if shape.attention != "mla" and groups % tensor and tensor % groups:
        yield (
            f"--tensor_parallel_size {tensor} must be a divisor or a multiple of the model's {groups} key/value "
            f"groups; {change}"
        )


def feed_forward(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    inner, tensor = shape.intermediate_size, layout.tensor_parallel_size
    if not shape.num_experts and inner % tensor:
        yield (
            f"--tensor_parallel_size {tensor} must divide the model's feed-forward size {inner}; "
            f"set --tensor_parallel_size to one of {listed(divisors(math.gcd(inner, shape.num_attention_heads)))}"
        )

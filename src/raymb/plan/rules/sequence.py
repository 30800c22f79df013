"""Context parallel and sequence parallel workers share a sequence, packed or not."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.families import family_of
from raymb.model.shape import ModelShape
from raymb.plan.multiples import nearest_multiples
from raymb.plan.sizes import DetailedLayout


def sequence_length(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    length, limit = layout.seq_length, shape.max_position_embeddings
    if limit is not None and length > limit:
        yield f"--seq_length {length} is longer than the model's {limit} positions; set --seq_length to at most {limit}"
    if layout.context_parallel_size > 1 and length % (2 * layout.context_parallel_size):
        yield (
            f"--seq_length {length} must be a multiple of 2 x --context_parallel_size {layout.context_parallel_size} = "
            f"{2 * layout.context_parallel_size}; set --seq_length to "
            f"{nearest_multiples(length, 2 * layout.context_parallel_size)}"
        )
    if layout.sequence_parallel and layout.tensor_parallel_size == 1:
        yield "--sequence_parallel true needs --tensor_parallel_size of 2 or more, and it is 1; leave it out"
    elif layout.sequence_parallel and length % (layout.tensor_parallel_size * layout.context_parallel_size):
        product = layout.tensor_parallel_size * layout.context_parallel_size
        yield (
            f"--seq_length {length} must be a multiple of tensor x context parallel = {layout.tensor_parallel_size} x "
            f"{layout.context_parallel_size} = {product} with sequence parallel; set --seq_length to "
            f"{nearest_multiples(length, product)}, or --sequence_parallel false"
        )


def packing(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    if not layout.packing:
        return
    multiple = layout.sample_multiple
    if layout.seq_length % multiple and layout.seq_length % (2 * layout.context_parallel_size) == 0:
        yield (
            f"--seq_length {layout.seq_length} must be a multiple of {multiple} with --packing in this layout (2 x "
            f"context x tensor parallel); set --seq_length to {nearest_multiples(layout.seq_length, multiple)}"
        )
    if shape.tower:
        yield f"--packing is for rows of text, and {shape.architecture}'s have images; leave --packing out"
    if why := family_of(shape.architecture).no_packing:
        yield f"--packing is not possible with {shape.architecture}: {why}; leave --packing out"

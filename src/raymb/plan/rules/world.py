"""Workers and copies of the model multiply up, and a global batch divides among them."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.multiples import divisors, listed, nearest_multiples
from raymb.plan.rules.run import Run
from raymb.plan.sizes import DetailedLayout


def workers(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    product = layout.model_parallel_size
    if layout.num_workers % product == 0 or layout.copies_asked:
        return
    yield (
        f"--num_workers {layout.num_workers} must be a multiple of tensor x pipeline x context parallel = "
        f"{layout.tensor_parallel_size} x {layout.pipeline_parallel_size} x {layout.context_parallel_size} = "
        f"{product}; set --num_workers to "
        f"{nearest_multiples(layout.num_workers, product)}, or lower --tensor_parallel_size, "
        f"--pipeline_parallel_size or --context_parallel_size"
    )


def copies(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    """--data_parallel_size, where it was given, beside --num_workers and the other sizes."""
    if layout.data_parallel_size or layout.asked_data is None:
        return
    (low, high), (copies, left) = layout.asked_data, divmod(layout.num_workers, layout.model_parallel_size)
    factors, product = _factors(layout, low), layout.model_parallel_size * low
    if low < high:
        rule = f"would be {_factors(layout, copies)}, and --data_parallel_size is {low}:{high}"
        ways = f"give --data_parallel_size a range that holds {copies}"
    elif layout.assumed == "open":
        rule = f"must be a multiple of {factors} = {product}, where sizes that are auto count as 1"
        ways = f"set --num_workers to {nearest_multiples(layout.num_workers, product)}"
        ways += "" if left else f", or --data_parallel_size to one of {listed(divisors(copies))}"
    else:
        one = " (sizes that are auto are 1 on CPU workers)" if layout.assumed else ""
        rule = f"is not {factors} = {product}{one}"
        ways = f"set --num_workers {product}" + ("" if left else f", or --data_parallel_size {copies}")
    if not left or low == high:
        yield f"--num_workers {layout.num_workers} {rule}; {ways}"


def unfinished(layout: DetailedLayout) -> Iterator[str]:
    """Sizes that were `auto` would have to take what is left of the workers, and the search has found none."""
    product = layout.model_parallel_size * layout.data_parallel_size
    if layout.data_parallel_size and product != layout.num_workers:
        yield (
            f"--num_workers {layout.num_workers} is not {_factors(layout, layout.data_parallel_size)} = {product}, "
            "and auto finds no "
            f"other sizes; set --num_workers {product}, or --data_parallel_size "
            f"{layout.num_workers // layout.model_parallel_size}, or give the sizes that are auto"
        )


def _factors(layout: DetailedLayout, copies: int) -> str:
    sizes = (
        f"{layout.tensor_parallel_size} x {layout.pipeline_parallel_size} x {layout.context_parallel_size} x {copies}"
    )
    return f"tensor x pipeline x context x data parallel = {sizes}"


def batch(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    product = layout.micro_batch_size * layout.data_parallel_size
    if product and layout.global_batch_size % product:
        yield (
            f"--global_batch_size {layout.global_batch_size} must be a multiple of micro batch x data parallel = "
            f"{layout.micro_batch_size} x {layout.data_parallel_size} = {product}; set --global_batch_size to "
            f"{nearest_multiples(layout.global_batch_size, product)}, or change --micro_batch_size"
        )


def rows(run: Run) -> Iterator[str]:
    count, batch, packing = run.rows, run.spec.train.global_batch_size, run.spec.data.packing
    if count is None or count >= batch:
        return
    kind, or_else = ("packed ", ", or leave --packing out") if packing else ("", "")
    yield (
        f"the {count} {kind}training rows do not fill one global batch of {batch}: "
        f"lower --global_batch_size, give more rows with --dataset{or_else}"
    )

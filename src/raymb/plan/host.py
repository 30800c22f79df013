"""Memory of the hosts, which an optimizer that is offloaded takes."""

from __future__ import annotations

from raymb.model.shape import ModelShape
from raymb.plan.memory import optimizer_numbers
from raymb.plan.sizes import DetailedLayout

USABLE = 0.8
"""Share of a host's memory that an automatic layout may take; the rest is for Python, data, files and checkpoints."""
_BYTES = 16
"""Of an offloaded number: its fp32 weight, both moments and its gradient, as Megatron-Core 0.19.2 keeps them
(optimizer/cpu_offloading/hybrid_optimizer.py); not measured."""


def memory_of_a_host(layout: DetailedLayout, shape: ModelShape, per_node: int) -> int:
    """Bytes that the optimizer's state takes on the host of a node, on average over stages.

    Args:
        layout: breaks no rule.
        per_node: GPUs of a node.
    """
    if not layout.optimizer_offload:
        return 0
    stages = range(layout.pipeline_parallel_size)
    numbers = sum(optimizer_numbers(layout, shape, stage) for stage in stages) / len(stages)
    return int(_BYTES * layout.optimizer_offload * numbers * min(per_node, layout.num_workers))

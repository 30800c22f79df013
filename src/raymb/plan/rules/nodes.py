"""A group of tensor parallel workers belongs on one node."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.plan.placement import planned_problem
from raymb.plan.rules.run import Run


def tensor_groups(run: Run) -> Iterator[str]:
    per_node, layout = run.spec.cluster.gpus_per_node, run.layout
    if layout is None or not per_node:
        return
    if text := planned_problem(layout.tensor_parallel_size, layout.num_workers, per_node):
        yield text

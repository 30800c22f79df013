"""What a layout, and the run that has it, must keep: a file a subject, a function a rule.

A rule yields a sentence for everything that breaks it: the values, the rule, the flag to change. A new one takes its
place in a list below, which is also the order in which a user reads them.
"""

from __future__ import annotations

from raymb.model.shape import ModelShape
from raymb.plan.rules import (
    adapters,
    experts,
    family,
    gpu_only,
    images,
    nodes,
    positions,
    precision,
    recompute,
    sequence,
    stages,
    tensor,
    world,
)
from raymb.plan.rules.run import Run
from raymb.plan.sizes import DetailedLayout

__all__ = ["OF_LAYOUTS", "OF_RUNS", "OF_SIZES", "Run", "broken_rules", "broken_run_rules", "broken_size_rules", "obeys"]

OF_LAYOUTS = (
    world.workers,
    world.copies,
    world.batch,
    tensor.heads,
    tensor.states,
    tensor.feed_forward,
    stages.layer_counts,
    stages.chunks,
    stages.micro_batches,
    sequence.sequence_length,
    sequence.packing,
    positions.rotary,
    positions.windows,
    positions.indexers,
    experts.split,
    experts.workers,
    experts.sequence,
    family.only_one,
    family.settings,
    adapters.sizes,
    stages.fsdp,
    family.graphs,
)
"""Of a layout and a model alone: what Megatron-Core 0.19 can train, mostly divisibility."""

OF_SIZES = (world.workers, world.copies, world.batch, stages.micro_batches, experts.workers)
"""Those of a layout that another number of workers might keep."""

OF_RUNS = (
    adapters.targets,
    gpu_only.settings,
    images.settings,
    recompute.of_run,
    experts.settings,
    precision.fp8,
    nodes.tensor_groups,
    world.rows,
)
"""Of everything that a run is (raymb.plan.rules.run.Run)."""


def broken_rules(layout: DetailedLayout, shape: ModelShape) -> list[str]:
    """What is wrong with a layout; empty if it can train."""
    return [text for rule in OF_LAYOUTS for text in rule(layout, shape)] or [*world.unfinished(layout)]


def broken_size_rules(layout: DetailedLayout, shape: ModelShape) -> list[str]:
    """Of broken_rules what another number of workers might mend."""
    return [text for rule in OF_SIZES for text in rule(layout, shape)] or [*world.unfinished(layout)]


def broken_run_rules(run: Run) -> list[str]:
    """What is wrong with a run besides its layout's sizes."""
    return [text for rule in OF_RUNS for text in rule(run)]


def obeys(layout: DetailedLayout, shape: ModelShape) -> bool:
    """Whether a layout of the search can train; rules of recomputation count on stages that the others have passed."""
    return not broken_rules(layout, shape) and not any(recompute.of_layout(layout, shape))

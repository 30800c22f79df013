"""Every layout that obeys the rules, what it takes and how long a step is: the fastest that fits comes first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from raymb.model.shape import ModelShape
from raymb.plan import graphs, host
from raymb.plan.choose import default_expert_tensor, sequence_parallel
from raymb.plan.gpus import Gpu
from raymb.plan.memory import Memory, estimate
from raymb.plan.multiples import divisors
from raymb.plan.rules import obeys
from raymb.plan.sizes import DetailedLayout
from raymb.plan.speed import StepTime, step_time
from raymb.spec.sections import RunSpec

USABLE = 0.9
"""Share of a GPU's memory that an automatic layout may take by estimate, which may be wrong by as much as the rest."""
SAME = 0.01
"""Step times that differ by less count as equal; the one with less memory wins."""
_LONG = 8192
"""Tokens of a sequence from which on it may be shared (context parallel)."""
_LARGEST_MICRO_BATCH = 32
_MOST_STAGES = 64
_SAVING = (("none", 0.0), ("full", 0.0), ("none", 1.0), ("full", 1.0))
"""(recomputation, share of the optimizer on the host), the fastest first."""


@dataclass(frozen=True)
class Candidate:
    """host: bytes of memory that it takes on a node's host."""

    layout: DetailedLayout
    memory: Memory
    time: StepTime
    host: int

    def fits(self, gpu: Gpu) -> bool:
        return self.memory.total <= USABLE * gpu.memory and self.host <= host.USABLE * (gpu.host or math.inf)

    def strain(self, gpu: Gpu) -> float:
        """Share that it takes of a GPU's memory, or of a host's, whichever is larger."""
        return max(self.memory.total / gpu.memory, self.host / (gpu.host or math.inf))


def candidates(spec: RunSpec, start: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int) -> list[Candidate]:
    """Those that fit, the fastest first, then those that do not, the ones first that lack least. Where CUDA graphs are
    `auto`, one with them stands before those without that it is raymb.plan.graphs.GAIN times as fast as.

    Args:
        spec: what is not `auto` in it stays.
        start: its layout with 1 for every size that is `auto`.
        per_node: GPUs of a node.
    """
    found: list[Candidate] = []
    free = spec.performance.cuda_graphs == "auto"
    graphed = [False, True] if free and not graphs.why_not(spec, shape) else [start.cuda_graphs]
    for layout in _layouts(spec, start, shape, per_node):
        if obeys(layout, shape):
            for recording in graphed:
                found += _until_it_fits(spec, replace(layout, cuda_graphs=recording), shape, gpu, per_node)

    def seconds(one: Candidate) -> float:
        return one.time.total * (graphs.GAIN if free and one.layout.cuda_graphs else 1.0)

    fitting = sorted((one for one in found if one.fits(gpu)), key=seconds)
    equal = [one for one in fitting if seconds(one) <= seconds(fitting[0]) * (1 + SAME)]
    rest = [one for one in found if not one.fits(gpu)]
    thrifty = sorted(equal, key=lambda one: one.memory.total)
    return [*thrifty, *fitting[len(equal) :], *sorted(rest, key=lambda one: one.strain(gpu))]


def _until_it_fits(
    spec: RunSpec, layout: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int
) -> Iterator[Candidate]:
    """The layout without recomputation, and with what saves more and more of the GPU's memory until it fits."""
    for candidate in _savings(spec, layout, shape, gpu, per_node):
        yield candidate
        if candidate.fits(gpu):
            return


def _savings(spec: RunSpec, layout: DetailedLayout, shape: ModelShape, gpu: Gpu, per_node: int) -> Iterator[Candidate]:
    asked, offload = spec.train.recompute, spec.optimizer.optimizer_offload
    if asked == "auto" and (layout.activation_offload_layers or layout.cuda_graphs):
        asked = "none"
    if offload == "auto" and (
        layout.optimizer_moments == "bf16" or not layout.distributed_optimizer or layout.megatron_fsdp != "none"
    ):
        offload = 0.0
    ways = [
        (recompute if asked == "auto" else asked, share if offload == "auto" else float(offload))
        for recompute, share in (_SAVING if layout.lora_rank is None else _SAVING[:2])
    ]
    for recompute, share in dict.fromkeys(ways):
        one = replace(layout, recompute=recompute, optimizer_offload=share)
        if one.cuda_graphs and spec.performance.cuda_graphs == "auto" and graphs.against(one, shape):
            continue
        on_host = host.memory_of_a_host(one, shape, per_node)
        yield Candidate(one, estimate(one, shape), step_time(one, shape, gpu, per_node), on_host)


def _layouts(spec: RunSpec, start: DetailedLayout, shape: ModelShape, per_node: int) -> Iterator[DetailedLayout]:
    """Every combination of sizes that multiply up."""
    parallel, workers = spec.parallel, start.num_workers
    least, most = start.asked_data or (1, workers)

    def sizes(asked: int | str | None, automatic: list[int]) -> list[int]:
        return [one for one in ([asked] if isinstance(asked, int) else automatic) if workers % one == 0]

    powers = [1 << exponent for exponent in range(15)]
    tensors = sizes(parallel.tensor_parallel_size, [one for one in powers if per_node % one == 0])
    pipelines = sizes(parallel.pipeline_parallel_size, divisors(workers))
    contexts = sizes(parallel.context_parallel_size, powers[:5] if start.seq_length >= _LONG else [1])
    experts = sizes(parallel.expert_parallel_size, divisors(shape.num_experts) if shape.num_experts else [1])
    for tensor, pipeline, context, expert in product(tensors, pipelines, contexts, experts):
        whole = tensor * pipeline * context
        if workers % whole or pipeline > min(shape.num_layers, _MOST_STAGES):
            continue
        if not least <= workers // whole <= most:
            continue
        inner = default_expert_tensor(shape, tensor, adapters=start.lora_rank is not None)
        layout = replace(
            start,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            context_parallel_size=context,
            expert_parallel_size=expert,
            expert_tensor_parallel_size=start.expert_tensor_parallel_size if start.expert_tensor_given else inner,
            data_parallel_size=workers // whole,
            sequence_parallel=sequence_parallel(parallel.sequence_parallel, tensor)[0],
        )
        for staged in _stages(layout, shape, parallel.pipeline_parallel_size == "auto"):
            yield from _batches(spec, staged, shape)


def _stages(layout: DetailedLayout, shape: ModelShape, free: bool) -> Iterator[DetailedLayout]:
    """With as many layers on every stage, or a few less on the first and the last, which have the vocabulary, too.

    Args:
        free: whether nobody has said how many stages there are to be.
    """
    given = layout.num_layers_in_first_stage is not None or layout.num_layers_in_last_stage is not None
    if given or not free or shape.num_layers % layout.pipeline_parallel_size == 0:
        yield layout
        return
    middle, inner = -(-shape.num_layers // layout.pipeline_parallel_size), layout.pipeline_parallel_size - 2
    outer, odd = divmod(shape.num_layers - inner * middle, 2)
    if inner > 0 and outer > 0 and not odd:
        yield replace(layout, num_layers_in_first_stage=outer, num_layers_in_last_stage=outer)


def _batches(spec: RunSpec, layout: DetailedLayout, shape: ModelShape) -> Iterator[DetailedLayout]:
    """With every micro-batch size and every number of chunks a stage."""
    asked, virtual = spec.train.micro_batch_size, spec.parallel.virtual_pipeline_parallel_size
    if isinstance(asked, int):
        micro = [asked]
    else:
        micro = [size for size in divisors(layout.global_batch_size) if size <= _LARGEST_MICRO_BATCH]
    per_stage = shape.num_layers // layout.pipeline_parallel_size
    chunks = [None, *(size for size in (2, 3, 4, 6) if layout.pipeline_parallel_size > 1 and per_stage % size == 0)]
    if virtual != "auto":
        chunks = [None if virtual == 1 else virtual]
    for size, count in product(micro, chunks):
        if layout.global_batch_size % (size * layout.data_parallel_size) == 0:
            yield replace(layout, micro_batch_size=size, virtual_pipeline_parallel_size=count)

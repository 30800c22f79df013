"""World-size and batch arithmetic: from what the user asked for to a layout in which nothing is `auto`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan.adapters import Targets, targets_of
from raymb.plan.automatic import Automatic, automatic, per_node, too_large
from raymb.plan.elastic import is_elastic, usable_layouts
from raymb.plan.gpus import USUAL, Gpu, gpu_named
from raymb.plan.memory import estimate
from raymb.plan.multiples import divisors
from raymb.plan.reason import Reason
from raymb.plan.rules import Run, broken_run_rules
from raymb.plan.sizes import Layout, layers_per_stage, sample_multiple
from raymb.plan.speed import step_time
from raymb.spec.sections import RunSpec
from raymb.spec.training import Parallel, worker_flag, worker_range


@dataclass(frozen=True)
class Plan:
    """The resolved layout. Sizes are counts of workers, batches are samples, lengths are tokens.

    num_workers = tensor x pipeline x context x data parallel. Experts have a grid of their own over the same workers:
    num_workers = expert tensor x expert x pipeline x expert data parallel. micro_batches are those of one worker in one
    step. tokens counts padding. rows (packed ones, with packing), steps_per_epoch and epochs are None until the data
    has been prepared; so are train_iters, samples and tokens where --num_epochs decides them. Each sample of a packed
    row is padded to sample_multiple tokens. reasons has one for every flag that was `auto`, except for
    data_parallel_size, which follows from the others. workers_per_node and nodes are None unless --gpus_per_node was
    given. elastic holds every usable size of an elastic run, ascending, and num_workers is one of them; None where the
    size is fixed. adapters: which matrices have one; None without --peft. backend is `auto` while nobody has looked at
    the cluster. gpu: what memory (raymb.plan.memory.Memory, bytes of the fullest GPU) and step_time
    (raymb.plan.speed.StepTime, seconds) are estimated for; all three None on CPUs.
    """

    backend: str
    num_workers: int
    elastic: list[int] | None
    workers_per_node: int | None
    nodes: int | None
    tensor_parallel_size: int
    pipeline_parallel_size: int
    virtual_pipeline_parallel_size: int | None
    context_parallel_size: int
    expert_parallel_size: int
    expert_tensor_parallel_size: int
    data_parallel_size: int
    expert_data_parallel_size: int
    sequence_parallel: bool
    num_layers_in_first_stage: int | None
    num_layers_in_last_stage: int | None
    layers_per_stage: list[int]
    micro_batch_size: int
    global_batch_size: int
    micro_batches: int
    seq_length: int
    packing: bool
    sample_multiple: int
    train_iters: int | None
    samples: int | None
    tokens: int | None
    rows: int | None
    steps_per_epoch: float | None
    epochs: float | None
    padded_vocab_size: int
    parameters: int
    megatron_fsdp: str = "none"
    recompute: str = "none"
    optimizer_offload: float = 0.0
    gpu: str | None = None
    memory: dict[str, int] | None = None
    step_time: dict[str, float] | None = None
    adapters: Targets | None = None
    reasons: dict[str, Reason] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able values, in the order of the fields; reasons are `chosen`, in words."""
        values = asdict(self)
        del values["reasons"]
        return values | {"chosen": self.chosen}

    @property
    def chosen(self) -> dict[str, str]:
        """What was chosen, and why, in a sentence for every flag of reasons."""
        return {flag: str(reason) for flag, reason in self.reasons.items()}

    @property
    def model_parallel_size(self) -> int:
        """Workers that share one copy of the model: tensor x pipeline x context parallel."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.context_parallel_size


def make_plan(
    spec: RunSpec,
    shape: ModelShape,
    *,
    rows: int | None = None,
    backend: str = "auto",
    num_workers: int | None = None,
    gpu: Gpu | None = None,
) -> Plan:
    """Resolve every `auto` and check every rule.

    Args:
        spec: what the user asked for; never changed, only honoured or refused.
        shape: the model's sizes.
        rows: training rows in the data set, if it has been read.
        backend: cuda or cpu where known; `auto` takes the spec's, and CUDA's rules while that is `auto` too.
        num_workers: which of an elastic run's sizes; default: the largest usable one.
        gpu: what the workers have, where somebody knows.

    Raises:
        PlanError: with every broken rule.
    """
    plans = usable_plans(spec, shape, rows=rows, backend=backend, gpu=gpu)
    size = max(plans) if num_workers is None else num_workers
    if size not in plans:
        usable = ", ".join(str(size) for size in plans)
        asked = worker_flag(spec.parallel)
        raise PlanError([f"{size} workers are no usable size of {asked}; the usable ones: {usable} workers"])
    return plans[size]


def usable_plans(
    spec: RunSpec, shape: ModelShape, *, rows: int | None = None, backend: str = "auto", gpu: Gpu | None = None
) -> dict[int, Plan]:
    """The plan of every size that is asked for and breaks no rule, by number of workers, the smallest first.

    They differ in data parallel and accumulation only; the other sizes, and micro and global batch, are the same. One
    plan where the size is fixed.

    Args:
        spec, shape, rows, backend, gpu: as for make_plan.

    Raises:
        PlanError: no size is usable; with every broken rule.
    """
    backend = spec.run.backend if backend == "auto" else backend
    chip = None if backend == "cpu" else gpu or gpu_named(USUAL)
    choice = automatic(spec, shape, chip) if chip else Automatic(spec, {})
    reasons = _workers_reason(spec.parallel) | choice.reasons
    spec = choice.spec
    layouts, problems = usable_layouts(spec, shape, backend, choice.micro_batch_size)
    if chip and gpu:  # nothing is too large for a GPU that is only supposed
        problems += too_large(spec, shape, gpu, layouts)
    largest = layouts[max(layouts)][0] if layouts else None
    problems += broken_run_rules(Run(spec, shape, backend, gpu, rows, largest))
    if problems:
        raise PlanError(problems)
    elastic = list(layouts) if is_elastic(spec) else None
    return {
        size: _plan(spec, shape, layout, reasons | chosen, rows=rows, backend=backend, elastic=elastic, gpu=chip)
        for size, (layout, chosen) in layouts.items()
    }


def _workers_reason(parallel: Parallel) -> dict[str, Reason]:
    """Of the number of workers, where the sizes that were given made it."""
    sizes = (parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.context_parallel_size)
    if not parallel.workers_follow or {*sizes, parallel.data_parallel_size} == {"auto"}:
        return {}
    low, high = worker_range(parallel)
    made = f"{low}" if low == high else f"{low}:{high}"
    why = "the product of tensor, pipeline, context and data parallel sizes that were given"
    return {"num_workers": Reason(made, why)}


def _plan(
    spec: RunSpec,
    shape: ModelShape,
    layout: Layout,
    reasons: dict[str, Reason],
    *,
    rows: int | None,
    backend: str,
    elastic: list[int] | None,
    gpu: Gpu | None,
) -> Plan:
    """The plan of a layout that breaks no rule."""
    train_iters = _train_iters(spec, rows, layout.global_batch_size)
    samples = train_iters * layout.global_batch_size if train_iters else None
    node = spec.cluster.gpus_per_node
    return Plan(
        backend=backend,
        num_workers=layout.num_workers,
        elastic=elastic,
        workers_per_node=min(node, layout.num_workers) if node else None,
        nodes=math.ceil(layout.num_workers / node) if node else None,
        tensor_parallel_size=layout.tensor,
        pipeline_parallel_size=layout.pipeline,
        virtual_pipeline_parallel_size=layout.virtual,
        context_parallel_size=layout.context,
        expert_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        data_parallel_size=layout.data,
        expert_data_parallel_size=layout.expert_data,
        sequence_parallel=layout.sequence_parallel,
        num_layers_in_first_stage=layout.first_stage,
        num_layers_in_last_stage=layout.last_stage,
        layers_per_stage=layers_per_stage(layout, shape.num_layers),
        micro_batch_size=layout.micro_batch_size,
        global_batch_size=layout.global_batch_size,
        micro_batches=layout.micro_batches,
        seq_length=layout.seq_length,
        packing=layout.packing,
        sample_multiple=sample_multiple(layout),
        train_iters=train_iters,
        samples=samples,
        tokens=samples * layout.seq_length if samples else None,
        rows=rows,
        steps_per_epoch=rows / layout.global_batch_size if rows else None,
        epochs=samples / rows if samples and rows else None,
        padded_vocab_size=math.ceil(shape.vocab_size / layout.tensor) * layout.tensor,
        parameters=shape.parameter_count,
        megatron_fsdp=layout.fsdp,
        recompute=layout.recompute,
        optimizer_offload=layout.optimizer_offload,
        gpu=gpu.name if gpu else None,
        memory=estimate(layout, shape).to_dict() if gpu else None,
        step_time=step_time(layout, shape, gpu, per_node(spec, layout.num_workers)).to_dict() if gpu else None,
        adapters=None if spec.peft.peft == "none" else targets_of(spec.peft, shape),
        reasons=reasons,
    )


DEFAULT_TRAIN_ITERS = 100


def _train_iters(spec: RunSpec, rows: int | None, batch: int) -> int | None:
    if spec.train.num_epochs is None:
        return spec.train.train_iters or DEFAULT_TRAIN_ITERS
    return math.ceil(spec.train.num_epochs * rows / batch) if rows else None


def evaluation_batch(plan: dict[str, Any], copies: int, rows: int) -> tuple[int, int]:
    """(micro batch, global batch) of a validation: the largest that divide the training's, and that the rows can fill.

    Args:
        plan: Plan.to_dict().
        copies: data parallel workers.
        rows: held out; too few for one micro batch of one sample a copy give a global batch of 0.
    """
    if plan["virtual_pipeline_parallel_size"]:
        copies *= plan["pipeline_parallel_size"]  # interleaved stages want as many micro-batches each time
    sizes = divisors(plan["micro_batch_size"])
    micro = max((size for size in sizes if size * copies <= rows), default=1)
    smallest = micro * copies
    return micro, min(plan["global_batch_size"], rows // smallest * smallest)

"""World-size and batch arithmetic: from what the user asked for to a layout in which nothing is `auto`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from raymb.errors import PlanError
from raymb.model.shape import ModelShape
from raymb.plan.adapters import Targets, targets_of
from raymb.plan.automatic import Automatic, automatic, per_node, too_large
from raymb.plan.elastic import is_elastic, usable_layouts
from raymb.plan.gpus import GIB, USUAL, Gpu, gpu_named, reduced_memory
from raymb.plan.host import memory_of_a_host
from raymb.plan.memory import estimate
from raymb.plan.reason import Reason
from raymb.plan.rules import Run, broken_run_rules
from raymb.plan.sizes import DetailedLayout, Layout, layers_per_stage
from raymb.plan.speed import step_time
from raymb.spec.sections import RunSpec
from raymb.spec.training import Parallel, worker_flag, worker_range

_DERIVED = ("expert_data_parallel_size", "micro_batches", "sample_multiple")
"""What to_dict says of a layout besides its fields."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run's layout and what follows from it.

    Args:
        layout: the sizes, with `auto` resolved.
        backend: cuda or cpu; auto while nobody has looked at the cluster.
        elastic: every usable size of an elastic run, ascending, layout.num_workers among them; None where it is fixed.
        workers_per_node, nodes: None unless --gpus_per_node was given.
        layers_per_stage: transformer layers, first stage to last.
        train_iters, samples, tokens: of the run, padding counted; None where --num_epochs decides and no row has been
            prepared yet.
        rows, steps_per_epoch, epochs: packed rows, with packing; None until the data has been prepared.
        padded_vocab_size: rows of the embedding, a multiple of the tensor parallel size.
        parameters: of the model.
        gpu, memory, step_time: the GPU that memory (raymb.plan.memory.Memory, bytes of the fullest GPU) and step_time
            (raymb.plan.speed.StepTime, seconds) are estimated for; None on CPUs.
        gpu_memory: bytes of the GPU that the layout was chosen for, where that is less than it has: another layout of
            the run has run out of memory.
        host_memory: bytes that an offloaded optimizer takes on the host of a node; node_memory: what it has, where
            somebody knows.
        adapters: which matrices have one; None without --peft.
        reasons: one for every flag that was `auto`, but for data_parallel_size, which follows from the others.
            Plans are equal whatever their reasons.
    """

    layout: Layout
    backend: str
    elastic: list[int] | None
    workers_per_node: int | None
    nodes: int | None
    layers_per_stage: list[int]
    train_iters: int | None
    samples: int | None
    tokens: int | None
    rows: int | None
    steps_per_epoch: float | None
    epochs: float | None
    padded_vocab_size: int
    parameters: int
    gpu: str | None = None
    gpu_memory: int | None = None
    memory: dict[str, int] | None = None
    step_time: dict[str, float] | None = None
    host_memory: int = 0
    node_memory: int | None = None
    adapters: Targets | None = None
    reasons: dict[str, Reason] = field(default_factory=dict, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The plan as one object of JSON-able values; what of the layout is derived is in it, and reasons are `chosen`,
        in words."""
        values = asdict(self)
        del values["reasons"]
        derived = {name: getattr(self.layout, name) for name in _DERIVED}
        return values.pop("layout") | derived | values | {"chosen": self.chosen}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Plan:
        """What to_dict made; without reasons.

        Raises:
            TypeError: something is missing, or is there that no plan has.
        """
        layout = {field.name: values[field.name] for field in fields(Layout) if field.name in values}
        rest = {name: value for name, value in values.items() if name not in (*layout, *_DERIVED, "chosen")}
        adapters = values.get("adapters")
        return Plan(**rest | {"layout": Layout(**layout), "adapters": Targets(**adapters) if adapters else None})

    @property
    def chip(self) -> Gpu | None:
        """The GPU that was planned for; None on CPUs."""
        if self.gpu is None:
            return None
        gpu = gpu_named(self.gpu)
        return replace(gpu, memory=self.gpu_memory or gpu.memory, host=self.node_memory)

    @property
    def chosen(self) -> dict[str, str]:
        """What was chosen, and why, in a sentence for every flag of reasons."""
        return {flag: str(reason) for flag, reason in self.reasons.items()}


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
    gpu = gpu and _with_host(gpu, spec)
    chip = None if backend == "cpu" else gpu or _with_host(gpu_named(USUAL), spec)
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


def _with_host(gpu: Gpu, spec: RunSpec) -> Gpu:
    """With the memory of its node that --host_memory says."""
    asked = spec.cluster.host_memory
    return gpu if asked == "auto" else replace(gpu, host=int(asked * GIB))


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
    layout: DetailedLayout,
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
        layout=layout.plain,
        backend=backend,
        elastic=elastic,
        workers_per_node=min(node, layout.num_workers) if node else None,
        nodes=math.ceil(layout.num_workers / node) if node else None,
        layers_per_stage=layers_per_stage(layout, shape.num_layers),
        train_iters=train_iters,
        samples=samples,
        tokens=samples * layout.seq_length if samples else None,
        rows=rows,
        steps_per_epoch=rows / layout.global_batch_size if rows else None,
        epochs=samples / rows if samples and rows else None,
        padded_vocab_size=math.ceil(shape.vocab_size / layout.tensor_parallel_size) * layout.tensor_parallel_size,
        parameters=shape.parameter_count,
        gpu=gpu.name if gpu else None,
        gpu_memory=reduced_memory(gpu) if gpu else None,
        memory=estimate(layout, shape).to_dict() if gpu else None,
        step_time=step_time(layout, shape, gpu, per_node(spec, layout.num_workers)).to_dict() if gpu else None,
        host_memory=memory_of_a_host(layout, shape, per_node(spec, layout.num_workers)),
        node_memory=gpu.host if gpu else None,
        adapters=None if spec.peft.peft == "none" else targets_of(spec.peft, shape),
        reasons=reasons,
    )


DEFAULT_TRAIN_ITERS = 100


def _train_iters(spec: RunSpec, rows: int | None, batch: int) -> int | None:
    if spec.train.num_epochs is None:
        return spec.train.train_iters or DEFAULT_TRAIN_ITERS
    return math.ceil(spec.train.num_epochs * rows / batch) if rows else None


def evaluation_batches(layout: Layout, rows: int) -> tuple[int, int]:
    """(global batch, batches) of a validation or test of all rows, the last batch padded: as few batches as the
    training's global batch allows, and no larger ones than they need to be.

    Args:
        layout: the training's.
        rows: held out; none take no batch.
    """
    if not rows:
        return 0, 0
    unit = layout.micro_batch_size * layout.data_parallel_size
    if layout.virtual_pipeline_parallel_size:
        unit *= layout.pipeline_parallel_size  # interleaved stages want as many micro-batches each time
    count = math.ceil(rows / layout.global_batch_size)
    return math.ceil(math.ceil(rows / count) / unit) * unit, count

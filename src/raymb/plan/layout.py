"""World-size and batch arithmetic: from what the user asked for to a layout in which nothing is `auto`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from raymb.errors import PlanError
from raymb.model_shape import ModelShape
from raymb.plan import rules
from raymb.spec.sections import RunSpec

TOKENS_IN_A_MICRO_BATCH = 16384
"""Upper bound of micro batch x sequence length that `auto` chooses on CUDA."""
LARGEST_AUTO_MICRO_BATCH = 8


@dataclass(frozen=True)
class Plan:
    """The resolved layout. Sizes are counts of workers, batches are samples, lengths are tokens.

    num_workers = tensor x pipeline x context x data parallel. Experts have a grid of their own over the same workers:
    num_workers = expert tensor x expert x pipeline x expert data parallel. micro_batches are those of one worker in one
    step. tokens counts padding. rows (packed ones, with packing), steps_per_epoch and epochs are None until the data
    has been prepared; so are train_iters, samples and tokens where --num_epochs decides them. Each sample of a packed
    row is padded to sample_multiple tokens. chosen has a reason for every flag that was `auto`. workers_per_node and
    nodes are None unless --gpus_per_node was given.
    backend is `auto` while nobody has looked at the cluster.
    """

    backend: str
    num_workers: int
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
    chosen: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able values, in the order of the fields."""
        return asdict(self)


def make_plan(spec: RunSpec, shape: ModelShape, *, rows: int | None = None, backend: str = "auto") -> Plan:
    """Resolve every `auto` and check every rule.

    Args:
        spec: what the user asked for; never changed, only honoured or refused.
        shape: the model's sizes.
        rows: training rows in the data set, if it has been read.
        backend: cuda or cpu where known; `auto` takes the spec's, and CUDA's rules while that is `auto` too.

    Raises:
        PlanError: with every broken rule.
    """
    backend = spec.run.backend if backend == "auto" else backend
    layout, chosen = resolve(spec, shape, backend)
    problems = rules.broken_rules(layout, shape)
    if rows is not None and rows < layout.global_batch_size:
        kind, or_else = ("packed ", ", or leave --packing out") if layout.packing else ("", "")
        problems.append(
            f"the {rows} {kind}training rows do not fill one global batch of {layout.global_batch_size}: "
            f"lower --global_batch_size, give more rows with --dataset{or_else}"
        )
    if problems:
        raise PlanError(problems)
    train_iters = _train_iters(spec, rows, layout.global_batch_size)
    samples = train_iters * layout.global_batch_size if train_iters else None
    per_node = spec.cluster.gpus_per_node
    return Plan(
        backend=backend,
        num_workers=layout.num_workers,
        workers_per_node=min(per_node, layout.num_workers) if per_node else None,
        nodes=math.ceil(layout.num_workers / per_node) if per_node else None,
        tensor_parallel_size=layout.tensor,
        pipeline_parallel_size=layout.pipeline,
        virtual_pipeline_parallel_size=layout.virtual,
        context_parallel_size=layout.context,
        expert_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        data_parallel_size=layout.data,
        expert_data_parallel_size=layout.num_workers // (layout.expert_tensor * layout.expert * layout.pipeline),
        sequence_parallel=layout.sequence_parallel,
        num_layers_in_first_stage=layout.first_stage,
        num_layers_in_last_stage=layout.last_stage,
        layers_per_stage=layers_per_stage(layout, shape.num_layers),
        micro_batch_size=layout.micro_batch_size,
        global_batch_size=layout.global_batch_size,
        micro_batches=layout.global_batch_size // (layout.micro_batch_size * layout.data),
        seq_length=layout.seq_length,
        packing=layout.packing,
        sample_multiple=rules.sample_multiple(layout),
        train_iters=train_iters,
        samples=samples,
        tokens=samples * layout.seq_length if samples else None,
        rows=rows,
        steps_per_epoch=rows / layout.global_batch_size if rows else None,
        epochs=samples / rows if samples and rows else None,
        padded_vocab_size=math.ceil(shape.vocab_size / layout.tensor) * layout.tensor,
        parameters=shape.parameter_count,
        chosen=chosen,
    )


DEFAULT_TRAIN_ITERS = 100


def _train_iters(spec: RunSpec, rows: int | None, batch: int) -> int | None:
    if spec.train.num_epochs is None:
        return spec.train.train_iters or DEFAULT_TRAIN_ITERS
    return math.ceil(spec.train.num_epochs * rows / batch) if rows else None


def resolve(spec: RunSpec, shape: ModelShape, backend: str) -> tuple[rules.Layout, dict[str, str]]:
    """(layout without `auto`, reason of every choice by flag). Rules are not checked here."""
    parallel, chosen = spec.parallel, {}

    def size(flag: str, reason: str) -> int:
        value = getattr(parallel, flag)
        if value == "auto":
            chosen[flag] = f"1: {reason}"
        return 1 if value == "auto" else value

    fits = "data parallel is the fastest when the model fits; memory is not estimated yet"
    tensor = size("tensor_parallel_size", fits)
    pipeline = size("pipeline_parallel_size", fits)
    context = size("context_parallel_size", fits)
    expert = size("expert_parallel_size", fits if shape.num_experts else "the model has no experts")
    model_parallel = tensor * pipeline * context
    data = parallel.num_workers // model_parallel if parallel.num_workers % model_parallel == 0 else 0
    expert_tensor = parallel.expert_tensor_parallel_size
    # One chunk a stage is the plain schedule; Megatron calls that "no virtual pipeline".
    virtual = parallel.virtual_pipeline_parallel_size
    virtual = None if virtual == 1 else virtual
    sequence_parallel, why = _sequence_parallel(parallel.sequence_parallel, tensor)
    if why:
        chosen["sequence_parallel"] = why
    micro_batch_size, why = _micro_batch_size(spec, data, pipeline, virtual, backend)
    if why:
        chosen["micro_batch_size"] = why
    layout = rules.Layout(
        num_workers=parallel.num_workers,
        tensor=tensor,
        pipeline=pipeline,
        virtual=virtual,
        context=context,
        expert=expert,
        expert_tensor=expert_tensor or rules.default_expert_tensor(shape, tensor),
        expert_tensor_given=expert_tensor is not None,
        data=data,
        sequence_parallel=sequence_parallel,
        first_stage=parallel.num_layers_in_first_stage,
        last_stage=parallel.num_layers_in_last_stage,
        micro_batch_size=micro_batch_size,
        global_batch_size=spec.train.global_batch_size,
        seq_length=spec.data.seq_length,
        packing=spec.data.packing,
    )
    return layout, chosen


def layers_per_stage(layout: rules.Layout, num_layers: int) -> list[int]:
    """Transformer layers on each pipeline stage, first to last; the rules hold already."""
    given = [size for size in (layout.first_stage, layout.last_stage) if size is not None]
    middle_stages = layout.pipeline - len(given)
    middle = [(num_layers - sum(given)) // middle_stages] * middle_stages if middle_stages else []
    first = [layout.first_stage] if layout.first_stage is not None else []
    last = [layout.last_stage] if layout.last_stage is not None else []
    return first + middle + last


def _sequence_parallel(asked: bool | str, tensor: int) -> tuple[bool, str]:
    if asked != "auto":
        return bool(asked), ""
    if tensor == 1:
        return False, "off: it splits activations over tensor parallel workers, and there is 1"
    return True, "on: with tensor parallel it saves activation memory at no cost"


def _micro_batch_size(spec: RunSpec, data: int, pipeline: int, virtual: int | None, backend: str) -> tuple[int, str]:
    """(size, reason). Where no size can be right, 1 is taken and the rules then name what is wrong."""
    asked = spec.train.micro_batch_size
    if asked != "auto":
        return asked, ""
    if spec.data.packing:
        return 1, "1: a packed row is a micro batch of its own"
    if backend == "cpu":
        return 1, "1: the CPU gains nothing from a larger one"
    if not data or spec.train.global_batch_size % data:
        return 1, "1: the global batch does not divide among the data parallel workers"
    share = spec.train.global_batch_size // data
    size, limit = LARGEST_AUTO_MICRO_BATCH, TOKENS_IN_A_MICRO_BATCH
    while size > 1 and not _suits(size, share, spec.data.seq_length, pipeline, virtual):
        size //= 2
    filled = " and fills the pipeline" if pipeline > 1 else ""
    return size, (
        f"{size}: the largest power of 2 up to {LARGEST_AUTO_MICRO_BATCH} that divides global batch / data parallel = "
        f"{share}, holds at most {limit} tokens{filled}"
    )


def _suits(size: int, share: int, seq_length: int, pipeline: int, virtual: int | None) -> bool:
    micro_batches = share // size
    if share % size or size * seq_length > TOKENS_IN_A_MICRO_BATCH or micro_batches < pipeline:
        return False
    return not virtual or micro_batches % pipeline == 0

"""What `auto` becomes, and why."""

from __future__ import annotations

from typing import Any, Literal

from raymb.model.shape import ModelShape
from raymb.plan.adapters import targets_of
from raymb.plan.reason import Reason
from raymb.plan.rules.family import has_whole_experts
from raymb.plan.sizes import DetailedLayout
from raymb.spec.sections import RunSpec
from raymb.spec.training import Parallel, data_range

TOKENS_IN_A_MICRO_BATCH, TOKENS_ON_A_CPU = 16384, 2048
"""Upper bounds of micro batch x sequence length that `auto` chooses. A CPU's matrix products gain nothing from more."""
LARGEST_AUTO_MICRO_BATCH = 8
MICRO_BATCHES_A_STAGE_ON_A_CPU = 4
"""The fewest that `auto` leaves to a pipeline: a larger micro-batch saves what it costs to add to each weight's
gradient, and stages that wait cost more."""


Chosen = tuple[DetailedLayout, dict[str, Reason]]
"""A layout without `auto`, and the reason of every choice by flag."""


def choose_layout(spec: RunSpec, shape: ModelShape, backend: str, num_workers: int) -> Chosen:
    """The layout of that many workers. Rules are not checked here."""
    parallel = spec.parallel
    chosen: dict[str, Reason] = {}

    def size(flag: str, why: str) -> int:
        value = getattr(parallel, flag)
        if value == "auto":
            chosen[flag] = Reason("1", why)
        return 1 if value == "auto" else value

    fits = "CPU workers share memory and cores, so copies of the model are the fastest"
    tensor = size("tensor_parallel_size", fits)
    pipeline = size("pipeline_parallel_size", fits)
    context = size("context_parallel_size", fits)
    expert = size("expert_parallel_size", fits if shape.num_experts else "the model has no experts")
    assumed = _assumed(parallel, backend)
    data = _copies(data_range(parallel), num_workers, tensor * pipeline * context, assumed == "open")
    adapters = spec.peft.peft != "none"
    expert_tensor = parallel.expert_tensor_parallel_size
    # One chunk a stage is the plain schedule; Megatron calls that "no virtual pipeline".
    asked = parallel.virtual_pipeline_parallel_size
    virtual = None if asked in ("auto", 1) else int(asked)
    in_sequence, why = sequence_parallel(parallel.sequence_parallel, tensor)
    if why:
        chosen["sequence_parallel"] = why
    micro_batch_size, why = _micro_batch_size(spec, data, pipeline, virtual, backend)
    if why:
        chosen["micro_batch_size"] = why
    layout = DetailedLayout(
        num_workers=num_workers,
        tensor_parallel_size=tensor,
        pipeline_parallel_size=pipeline,
        virtual_pipeline_parallel_size=virtual,
        context_parallel_size=context,
        expert_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor or default_expert_tensor(shape, tensor, adapters),
        expert_tensor_given=expert_tensor is not None,
        data_parallel_size=data,
        sequence_parallel=in_sequence,
        num_layers_in_first_stage=parallel.num_layers_in_first_stage,
        num_layers_in_last_stage=parallel.num_layers_in_last_stage,
        micro_batch_size=micro_batch_size,
        global_batch_size=spec.train.global_batch_size,
        seq_length=spec.data.seq_length,
        packing=spec.data.packing,
        asked_data=data_range(parallel),
        assumed=assumed,
        **_settings(spec, shape),
    )
    return layout, chosen


def _settings(spec: RunSpec, shape: ModelShape) -> dict[str, Any]:
    """What of a layout is not a size and needs no choice."""
    adapters = targets_of(spec.peft, shape) if spec.peft.peft != "none" else None
    return dict(
        recompute="none" if spec.train.recompute == "auto" else spec.train.recompute,
        recompute_method=spec.train.recompute_method or "uniform",
        recompute_num_layers=spec.train.recompute_num_layers or 1,
        recompute_modules=tuple(spec.train.recompute_modules),
        activation_offload_layers=spec.train.activation_offload_layers,
        optimizer_offload=0.0 if spec.optimizer.optimizer_offload == "auto" else spec.optimizer.optimizer_offload,
        optimizer_moments=spec.optimizer.optimizer_moments,
        distributed_optimizer=spec.optimizer.distributed_optimizer,
        megatron_fsdp=spec.parallel.megatron_fsdp,
        number_bytes=4 if spec.train.precision == "fp32" else 2,
        gradient_bytes=4 if spec.performance.grad_reduce_in_fp32 else 2,
        fused_cross_entropy=spec.performance.fused_cross_entropy,
        fused_activation=spec.performance.fused_activation,
        fp8="fp8" in spec.train.precision,
        cuda_graphs=spec.performance.cuda_graphs is True,
        lora_rank=spec.peft.lora_rank if adapters else None,
        adapter_targets=tuple(adapters.hugging_face) if adapters else (),
        saved_modules=tuple(adapters.saved) if adapters else (),
    )


def _assumed(parallel: Parallel, backend: str) -> Literal["", "one", "open"]:
    """DetailedLayout.assumed."""
    sizes = (parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.context_parallel_size)
    if "auto" not in sizes:
        return ""
    return "one" if backend == "cpu" else "open"


def _copies(asked: tuple[int, int] | None, workers: int, model_parallel: int, is_open: bool) -> int:
    """Data parallel size; 0 where the workers make none, or none that is asked for.

    Args:
        asked: (MIN, MAX).
        is_open: whether sizes that are not there yet may take what is left of the workers.
    """
    if asked and is_open and asked[0] == asked[1] and workers % (model_parallel * asked[0]) == 0:
        return asked[0]
    copies, left = divmod(workers, model_parallel)
    return 0 if left or (asked and not asked[0] <= copies <= asked[1]) else copies


def default_expert_tensor(shape: ModelShape, tensor: int, adapters: bool) -> int:
    """Megatron's default is the tensor parallel size, where the family can have it and nothing is adapted."""
    return 1 if adapters or not shape.num_experts or has_whole_experts(shape) else tensor


def sequence_parallel(asked: bool | str, tensor: int) -> tuple[bool, Reason | None]:
    """(whether it is on, the reason where nobody asked).

    Args:
        asked: `auto` or what the user wants.
        tensor: tensor parallel size.
    """
    if asked != "auto":
        return bool(asked), None
    if tensor == 1:
        return False, Reason("off", "it splits activations over tensor parallel workers, and there is 1")
    return True, Reason("on", "with tensor parallel it saves activation memory at no cost")


def _micro_batch_size(
    spec: RunSpec, data: int, pipeline: int, virtual: int | None, backend: str
) -> tuple[int, Reason | None]:
    """(size, the reason where nobody asked). Where none can be right it is 1, and the rules then name what is wrong."""
    asked = spec.train.micro_batch_size
    if asked != "auto":
        return asked, None
    if not data or spec.train.global_batch_size % data:
        return 1, Reason("1", "the global batch does not divide among the data parallel workers")
    share = spec.train.global_batch_size // data
    size, limit, fewest = LARGEST_AUTO_MICRO_BATCH, TOKENS_IN_A_MICRO_BATCH, pipeline
    if backend == "cpu":
        limit, fewest = TOKENS_ON_A_CPU, MICRO_BATCHES_A_STAGE_ON_A_CPU * pipeline if pipeline > 1 else 1
    while size > 1 and not _suits(size, share, limit // spec.data.seq_length, pipeline, virtual, fewest):
        size //= 2
    filled = " and fills the pipeline" if pipeline > 1 else ""
    why = (
        f"the largest power of 2 up to {LARGEST_AUTO_MICRO_BATCH} that divides global batch / data parallel = "
        f"{share}, holds at most {limit} tokens{filled}"
    )
    return size, Reason(str(size), why)


def _suits(size: int, share: int, most: int, pipeline: int, virtual: int | None, fewest: int) -> bool:
    """
    Args:
        share: samples of a data parallel worker in a step.
        most: samples in a micro-batch.
        fewest: micro-batches in a step.
    """
    micro_batches = share // size
    if share % size or size > most or micro_batches < fewest:
        return False
    return not virtual or micro_batches % pipeline == 0

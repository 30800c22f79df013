"""The plan for people: what `raymb plan` and `raymb finetune --dry_run` print."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import TYPE_CHECKING

from raymb.model.families import family_of
from raymb.model.shape import ModelShape
from raymb.plan.automatic import described, searched, with_auto
from raymb.plan.gpus import GIB, gpu_named
from raymb.plan.layout import Plan
from raymb.spec.sections import NO_DATASET, RunSpec

if TYPE_CHECKING:
    from rich.table import Table

_MUCH = 1.5
"""Times as fast, from which on another layout is named without being asked for."""
_WORTH_RECORDING = 0.1
"""Share of a step that launching takes, from which on it is said why layers are not recorded."""
_OTHERS = 4
"""Layouts that are shown besides."""


def print_plan(plan: Plan, shape: ModelShape, spec: RunSpec) -> None:
    """Print to standard output, as wide as the terminal.

    Args:
        plan, shape, spec: as of table_rows.
    """
    from rich.console import Console

    # Model paths and reasons hold [ and ], which are no markup; numbers are not to be coloured one by one.
    Console(markup=False, highlight=False).print(plan_table(plan, shape, spec))


def plan_table(plan: Plan, shape: ModelShape, spec: RunSpec) -> Table:
    """
    Args:
        plan, shape, spec: as of table_rows.
    """
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in table_rows(plan, shape, spec):
        table.add_row(name, value)
    return table


def table_rows(plan: Plan, shape: ModelShape, spec: RunSpec) -> Iterator[tuple[str, str]]:
    """(label, text) pairs, top to bottom, with what was chosen and what other layouts there are.

    Args:
        plan: the resolved layout.
        shape: the model's sizes.
        spec: what the user asked for.
    """
    if not spec.data.dataset:
        yield "dataset", NO_DATASET
    yield from plan_rows(plan, shape, spec.model.hf_model_path)
    if plan.nodes:
        yield "asked of Ray", _asked(plan, spec)
    yield from _choices(plan)
    if plan.layout.cuda_graphs and "cuda_graphs" not in plan.reasons:
        yield "CUDA graphs", "layers are recorded after the third step, and launched as one from then on"
    for index, line in enumerate(_others(plan, shape, spec)):
        yield "other layouts" if index == 0 else "", line


def plan_rows(plan: Plan, shape: ModelShape, model: str) -> list[tuple[str, str]]:
    """(label, text) pairs, top to bottom."""
    layout = plan.layout
    rows = [("model", f"{model} ({shape.architecture})"), ("", _sizes(plan, shape))]
    rows += _layout_rows(plan, shape)
    rows += [
        (
            "global batch",
            f"{layout.global_batch_size} = {layout.micro_batch_size} x {layout.data_parallel_size} x "
            f"{layout.micro_batches}  "
            "(micro batch x data parallel x micro-batches a step)",
        ),
        ("training", _training(plan)),
    ]
    if plan.adapters:
        saved = f"; {', '.join(plan.adapters.saved)} in full" if plan.adapters.saved else ""
        rows.append(("adapters", f"on {', '.join(plan.adapters.hugging_face)}{saved}"))
    if plan.rows:
        packed = "packed " if layout.packing else ""
        rows.append(
            ("data", f"{plan.rows:,} {packed}rows: {plan.steps_per_epoch:.2f} steps an epoch, {plan.epochs:.2f} epochs")
        )
    rows += _estimates(plan)
    rows.append(("backend", plan.backend))
    if plan.backend != "cpu" and (kernels := family_of(shape.architecture).kernels):
        rows.append(("kernels", f"GPU workers need the packages {', '.join(kernels.values())}"))
    return rows


def _estimates(plan: Plan) -> list[tuple[str, str]]:
    """Memory and speed on GPUs."""
    layout = plan.layout
    if plan.gpu is None or plan.memory is None or plan.step_time is None:
        return []
    parts = {name: size for name, size in plan.memory.items() if name != "total" and size >= GIB // 20}
    shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
    times = plan.step_time
    seconds = times["total"]
    rate = layout.global_batch_size * layout.seq_length / seconds / layout.num_workers
    most = sorted((name for name in times if name != "total"), key=lambda name: -times[name])[:3]
    shares = ", ".join(f"{name} {times[name] / seconds:.0%}" for name in most if times[name] >= 0.005 * seconds)
    total, there = plan.memory["total"] / GIB, gpu_named(plan.gpu).memory / GIB
    of_node = f" of {plan.node_memory / GIB:,.0f}" if plan.node_memory else ""
    on_host = f"about {plan.host_memory / GIB:,.0f} GiB{of_node} on the host: the optimizer, its weights and gradients"
    return [
        ("memory a GPU", f"about {total:.1f} GiB of {there:.1f} ({plan.gpu}): {shown}"),
        *([("memory a node", on_host)] if plan.host_memory else []),
        ("a step", f"about {seconds:.3g} s, {rate:,.0f} tokens/s a GPU: {shares}"),
    ]


def estimate_line(plan: Plan) -> str:
    """What a run on GPUs is expected to take, in one line; empty on CPUs."""
    layout = plan.layout
    if plan.gpu is None or plan.memory is None or plan.step_time is None:
        return ""
    total, there = plan.memory["total"] / GIB, gpu_named(plan.gpu).memory / GIB
    sizes = {
        "TP": layout.tensor_parallel_size,
        "PP": layout.pipeline_parallel_size,
        "DP": layout.data_parallel_size,
    }
    more = {"CP": layout.context_parallel_size, "EP": layout.expert_parallel_size}
    sizes |= {short: size for short, size in more.items() if size > 1}
    words = " x ".join(f"{short}{size}" for short, size in sizes.items())
    seconds = plan.step_time["total"]
    note = f"; chosen for {plan.gpu_memory / GIB:.1f} GiB, as another layout ran out" if plan.gpu_memory else ""
    return f"{words}: by estimate {total:.1f} GiB of {there:.1f} a GPU ({plan.gpu}), {seconds:.3g} s a step{note}"


def better_line(plan: Plan, shape: ModelShape, spec: RunSpec) -> str:
    """The layout that `auto` would have chosen, where the user's choices cost much time; else empty."""
    free = with_auto(spec)
    if plan.chip is None or plan.step_time is None or plan.elastic or free == spec:
        return ""
    best = searched(free, shape, plan.chip, plan.layout.num_workers)[0]
    ratio = plan.step_time["total"] / best.time.total
    if ratio < _MUCH or not best.fits(plan.chip):
        return ""
    return f"by estimate {described(best.layout)} is {ratio:.2g} times as fast as this layout (raymb plan shows more)"


def graphs_line(plan: Plan) -> str:
    """What `auto` made of --cuda_graphs, where it matters: they are on, or a step takes as long as Python does."""
    reason = plan.reasons.get("cuda_graphs")
    if reason is None or plan.step_time is None:
        return ""
    waits = plan.step_time["launch"] >= _WORTH_RECORDING * plan.step_time["total"]
    return f"CUDA graphs {reason}" if plan.layout.cuda_graphs or waits else ""


def _others(plan: Plan, shape: ModelShape, spec: RunSpec) -> Iterator[str]:
    """The best of the other layouts, and what would be the better one where the user has chosen."""
    layout, gpu = plan.layout, plan.chip
    if gpu is None or plan.step_time is None:
        return
    seconds = plan.step_time["total"]
    sizes_of = attrgetter(*(f"{kind}_parallel_size" for kind in ("tensor", "pipeline", "context", "expert")))
    seen = {sizes_of(layout)}
    for one in searched(with_auto(spec), shape, gpu, layout.num_workers):
        sizes = sizes_of(one.layout)
        if sizes in seen or len(seen) > _OTHERS:
            continue
        seen.add(sizes)
        needs, ratio = f"{one.memory.total / GIB:.1f} GiB", one.time.total / seconds
        if one.fits(gpu):
            yield f"{described(one.layout)}: {needs}, about {one.time.total:.3g} s a step, {_compared(ratio)}"
        else:
            yield f"{described(one.layout)}: {needs} do not fit"


def _compared(ratio: float) -> str:
    """What a step takes beside another, in words."""
    larger = f"{max(ratio, 1 / ratio):.2g}"
    if larger == "1":
        return "the same speed"
    return f"{larger} times as {'long' if ratio > 1 else 'fast'}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _asked(plan: Plan, spec: RunSpec) -> str:
    """What a cluster is asked for, and how many nodes give it."""
    cpus = spec.cluster.cpus_per_worker
    each = f"{1 if cpus == 'auto' else cpus:g} CPU" + (", 1 GPU" if plan.backend != "cpu" else "")
    kind = f" x {plan.gpu}" if plan.gpu and plan.backend != "cpu" else ""
    return f"{plan.layout.num_workers} x ({each}): {_nodes(plan.nodes or 1)} of {plan.workers_per_node}{kind}"


def _training(plan: Plan) -> str:
    layout = plan.layout
    if plan.train_iters is None:
        return "as many steps as the epochs take, once the rows are prepared (raymb data prepare)"
    padding = "" if layout.packing else ", padding counted"
    return (
        f"{plan.train_iters:,} steps x {layout.global_batch_size:,} = {plan.samples:,} samples; "
        f"x {layout.seq_length:,} = {plan.tokens:,} tokens{padding}"
    )


def _sharing(plan: Plan) -> int:
    return plan.layout.data_parallel_size * plan.layout.context_parallel_size


def _layout_rows(plan: Plan, shape: ModelShape) -> list[tuple[str, str]]:
    layout = plan.layout
    tensor, pipeline, virtual = (
        layout.tensor_parallel_size,
        layout.pipeline_parallel_size,
        layout.virtual_pipeline_parallel_size,
    )
    rows = [
        (
            "workers",
            f"{layout.num_workers} = {tensor} x {pipeline} x {layout.context_parallel_size} x "
            f"{layout.data_parallel_size}  "
            "(tensor x pipeline x context x data parallel)",
        )
    ]
    if layout.megatron_fsdp != "none":
        rows.append(("Megatron-FSDP", f"{layout.megatron_fsdp}: shared by {_sharing(plan)} workers"))
    if plan.elastic:
        rows.append(("elastic", _elastic(plan, plan.elastic)))
    if plan.nodes:
        crossing = "; tensor parallel crosses nodes, which is slow" if tensor > (plan.workers_per_node or 0) else ""
        rows.append(("workers a node", f"{plan.workers_per_node}, on {_nodes(plan.nodes)}{crossing}"))
    if shape.num_experts:
        rows.append(
            (
                "expert grid",
                f"{layout.num_workers} = {layout.expert_tensor_parallel_size} x {layout.expert_parallel_size} x "
                f"{pipeline} x {layout.expert_data_parallel_size}  "
                "(expert tensor x expert x pipeline x expert data parallel)",
            )
        )
    if pipeline > 1:
        chunks = f", each in {virtual} chunks" if virtual else ""
        rows.append(("layers a stage", ", ".join(str(count) for count in plan.layers_per_stage) + chunks))
    if tensor > 1:
        rows.append(("sequence parallel", "on" if layout.sequence_parallel else "off"))
    return rows


def _elastic(plan: Plan, sizes: list[int]) -> str:
    layout = plan.layout
    a_copy = layout.global_batch_size // layout.micro_batch_size * layout.model_parallel_size
    counts = _shortened([a_copy // size for size in sizes])
    return f"{_shortened(sizes)} workers (shown: {layout.num_workers}) with {counts} micro-batches a step"


def _shortened(numbers: list[int]) -> str:
    """At most 12 of them, the first and the last ones."""
    shown = [str(number) for number in numbers]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:8], "...", *shown[-3:]])


def _sizes(plan: Plan, shape: ModelShape) -> str:
    count = f"{plan.parameters:,}" if shape.parameter_count_is_exact else f"about {plan.parameters:,}"
    padded = plan.padded_vocab_size
    parts = [
        f"{count} parameters",
        f"{shape.num_layers} layers",
        f"hidden {shape.hidden_size:,}",
        f"{shape.num_attention_heads} heads / {shape.num_kv_heads} key-value groups",
        f"vocabulary {shape.vocab_size:,}" + (f" (padded to {padded:,})" if padded != shape.vocab_size else ""),
    ]
    if shape.num_experts:
        parts.append(f"{shape.num_experts} experts, {shape.experts_per_token or '?'} a token")
    if shape.prediction_parameters:
        parts.append(f"multi-token prediction's {shape.prediction_parameters:,} parameters stay as they are")
    if shape.max_position_embeddings:
        parts.append(f"at most {shape.max_position_embeddings:,} positions")
    return ", ".join(parts)


def _choices(plan: Plan) -> Iterator[tuple[str, str]]:
    """A line for each reason, with all choices that it is the reason of."""
    by_reason: dict[str, list[str]] = {}
    for flag, reason in plan.reasons.items():
        by_reason.setdefault(reason.text, []).append(f"--{flag} {reason.value}")
    for index, (text, choices) in enumerate(by_reason.items()):
        yield "auto chose" if index == 0 else "", f"{', '.join(choices)}: {text}"

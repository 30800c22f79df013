"""The plan for people: what `raymb plan` and `raymb finetune --dry_run` print."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymb.model_shape import ModelShape
from raymb.plan.layout import Plan

if TYPE_CHECKING:
    from rich.table import Table


def print_plan(plan: Plan, shape: ModelShape, model: str) -> None:
    """Print to standard output, as wide as the terminal.

    Args:
        plan: the resolved layout.
        shape: the model's sizes.
        model: what the user gave to --hf_model_path.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in plan_rows(plan, shape, model):
        table.add_row(name, value)
    _add_choices(table, plan)
    # Model paths and reasons hold [ and ], which are no markup; numbers are not to be coloured one by one.
    Console(markup=False, highlight=False).print(table)


def plan_rows(plan: Plan, shape: ModelShape, model: str) -> list[tuple[str, str]]:
    """(label, text) pairs, top to bottom."""
    rows = [("model", f"{model} ({shape.architecture})"), ("", _sizes(plan, shape))]
    rows += _layout_rows(plan, shape)
    rows += [
        (
            "global batch",
            f"{plan.global_batch_size} = {plan.micro_batch_size} x {plan.data_parallel_size} x {plan.micro_batches}  "
            "(micro batch x data parallel x micro-batches a step)",
        ),
        ("training", _training(plan)),
    ]
    if plan.adapters:
        rows.append(("adapters", f"on {', '.join(plan.adapters.hugging_face)}"))
    if plan.rows:
        packed = "packed " if plan.packing else ""
        rows.append(
            ("data", f"{plan.rows:,} {packed}rows: {plan.steps_per_epoch:.2f} steps an epoch, {plan.epochs:.2f} epochs")
        )
    rows.append(("backend", plan.backend if plan.backend != "auto" else "auto (CUDA when the cluster has GPUs)"))
    return rows


def _training(plan: Plan) -> str:
    if plan.train_iters is None:
        return "as many steps as the epochs take, once the rows are prepared (raymb data prepare)"
    padding = "" if plan.packing else ", padding counted"
    return (
        f"{plan.train_iters:,} steps x {plan.global_batch_size:,} = {plan.samples:,} samples; "
        f"x {plan.seq_length:,} = {plan.tokens:,} tokens{padding}"
    )


def _layout_rows(plan: Plan, shape: ModelShape) -> list[tuple[str, str]]:
    tensor, pipeline, virtual = (
        plan.tensor_parallel_size,
        plan.pipeline_parallel_size,
        plan.virtual_pipeline_parallel_size,
    )
    rows = [
        (
            "workers",
            f"{plan.num_workers} = {tensor} x {pipeline} x {plan.context_parallel_size} x {plan.data_parallel_size}  "
            "(tensor x pipeline x context x data parallel)",
        )
    ]
    if plan.elastic:
        rows.append(("elastic", _elastic(plan, plan.elastic)))
    if plan.nodes:
        crossing = "; tensor parallel crosses nodes, which is slow" if tensor > (plan.workers_per_node or 0) else ""
        rows.append(("workers a node", f"{plan.workers_per_node}, on {plan.nodes} nodes{crossing}"))
    if shape.num_experts:
        rows.append(
            (
                "expert grid",
                f"{plan.num_workers} = {plan.expert_tensor_parallel_size} x {plan.expert_parallel_size} x {pipeline} x "
                f"{plan.expert_data_parallel_size}  (expert tensor x expert x pipeline x expert data parallel)",
            )
        )
    if pipeline > 1:
        chunks = f", each in {virtual} chunks" if virtual else ""
        rows.append(("layers a stage", ", ".join(str(count) for count in plan.layers_per_stage) + chunks))
    if tensor > 1:
        rows.append(("sequence parallel", "on" if plan.sequence_parallel else "off"))
    return rows


def _elastic(plan: Plan, sizes: list[int]) -> str:
    a_copy = plan.global_batch_size // plan.micro_batch_size * plan.model_parallel_size
    counts = _shortened([a_copy // size for size in sizes])
    return f"{_shortened(sizes)} workers (shown: {plan.num_workers}) with {counts} micro-batches a step"


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
    if shape.max_position_embeddings:
        parts.append(f"at most {shape.max_position_embeddings:,} positions")
    return ", ".join(parts)


def _add_choices(table: Table, plan: Plan) -> None:
    for index, (flag, reason) in enumerate(plan.chosen.items()):
        table.add_row("auto chose" if index == 0 else "", f"--{flag} {reason}")

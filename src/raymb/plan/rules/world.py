"""Every divisibility rule of Megatron-Core 0.19 that a layout can break, each as a sentence for the user."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.sizes import Layout


def broken_rules(layout: Layout, shape: ModelShape) -> list[str]:
    """A sentence for every broken rule: the values, the rule, the flag to change. Empty if the layout can train."""
    checks = (
        *(_world, _copies, _batch, _heads, _feed_forward, _stages, _virtual_stages, _virtual_batch, _sequence),
        *(_packing, _experts, _expert_world, _expert_sequence, _family, _adapters, _fsdp, _graphs),
    )
    return [text for check in checks for text in check(layout, shape)] or [*_unfinished(layout)]


def broken_size_rules(layout: Layout, shape: ModelShape) -> list[str]:
    """Those of the broken rules that another number of workers might keep."""
    checks = (_world, _copies, _batch, _virtual_batch, _expert_world)
    return [text for check in checks for text in check(layout, shape)] or [*_unfinished(layout)]


def _world(layout: Layout, shape: ModelShape) -> Iterator[str]:
    product = layout.model_parallel
    if layout.num_workers % product == 0 or layout.copies_asked:
        return
    yield (
        f"--num_workers {layout.num_workers} must be a multiple of tensor x pipeline x context parallel = "
        f"{layout.tensor} x {layout.pipeline} x {layout.context} = {product}; set --num_workers to "
        f"{_nearest_multiples(layout.num_workers, product)}, or lower --tensor_parallel_size, "
        f"--pipeline_parallel_size or --context_parallel_size"
    )


def _copies(layout: Layout, shape: ModelShape) -> Iterator[str]:
    """--data_parallel_size, where it was given, beside --num_workers and the other sizes."""
    if layout.data or layout.asked_data is None:
        return
    (low, high), (copies, left) = layout.asked_data, divmod(layout.num_workers, layout.model_parallel)
    factors, product = _factors(layout, low), layout.model_parallel * low
    if low < high:
        rule = f"would be {_factors(layout, copies)}, and --data_parallel_size is {low}:{high}"
        ways = f"give --data_parallel_size a range that holds {copies}"
    elif layout.assumed == "open":
        rule = f"must be a multiple of {factors} = {product}, where sizes that are auto count as 1"
        ways = f"set --num_workers to {_nearest_multiples(layout.num_workers, product)}"
        ways += "" if left else f", or --data_parallel_size to one of {_listed(divisors(copies))}"
    else:
        one = " (sizes that are auto are 1 on CPU workers)" if layout.assumed else ""
        rule = f"is not {factors} = {product}{one}"
        ways = f"set --num_workers {product}" + ("" if left else f", or --data_parallel_size {copies}")
    if not left or low == high:
        yield f"--num_workers {layout.num_workers} {rule}; {ways}"


def _unfinished(layout: Layout) -> Iterator[str]:
    """Sizes that were `auto` would have to take what is left of the workers, and the search has found none."""
    product = layout.model_parallel * layout.data
    if layout.data and product != layout.num_workers:
        yield (
            f"--num_workers {layout.num_workers} is not {_factors(layout, layout.data)} = {product}, and auto finds no "
            f"other sizes; set --num_workers {product}, or --data_parallel_size "
            f"{layout.num_workers // layout.model_parallel}, or give the sizes that are auto"
        )


def _factors(layout: Layout, copies: int) -> str:
    sizes = f"{layout.tensor} x {layout.pipeline} x {layout.context} x {copies}"
    return f"tensor x pipeline x context x data parallel = {sizes}"


def _batch(layout: Layout, shape: ModelShape) -> Iterator[str]:
    product = layout.micro_batch_size * layout.data
    if product and layout.global_batch_size % product:
        yield (
            f"--global_batch_size {layout.global_batch_size} must be a multiple of micro batch x data parallel = "
            f"{layout.micro_batch_size} x {layout.data} = {product}; set --global_batch_size to "
            f"{_nearest_multiples(layout.global_batch_size, product)}, or change --micro_batch_size"
        )


def _heads(layout: Layout, shape: ModelShape) -> Iterator[str]:
    heads, groups, tensor = shape.num_attention_heads, shape.num_kv_heads, layout.tensor
    valid = [size for size in divisors(heads) if groups % size == 0 or size % groups == 0]
    change = f"set --tensor_parallel_size to one of {_listed(valid)}"
    if heads % tensor:
        yield f"--tensor_parallel_size {tensor} must divide the model's {heads} attention heads; {change}"
    if shape.attention != "mla" and groups % tensor and tensor % groups:
        yield (
            f"--tensor_parallel_size {tensor} must be a divisor or a multiple of the model's {groups} key/value "
            f"groups; {change}"
        )


def _feed_forward(layout: Layout, shape: ModelShape) -> Iterator[str]:
    inner, tensor = shape.intermediate_size, layout.tensor
    if not shape.num_experts and inner % tensor:
        yield (
            f"--tensor_parallel_size {tensor} must divide the model's feed-forward size {inner}; "
            f"set --tensor_parallel_size to one of {_listed(divisors(math.gcd(inner, shape.num_attention_heads)))}"
        )


def _stages(layout: Layout, shape: ModelShape) -> Iterator[str]:
    layers, stages, uneven = shape.num_layers, layout.pipeline, _uneven_flags(layout)
    if stages == 1:
        for flag, size in uneven.items():
            yield f"--{flag} {size} needs --pipeline_parallel_size of 2 or more, and it is 1; leave --{flag} out"
    elif stages > layers:
        yield f"--pipeline_parallel_size {stages} must not be more than the model's {layers} layers"
    elif not uneven and layers % stages:
        yield (
            f"--pipeline_parallel_size {stages} must divide the model's {layers} layers; set it to one of "
            f"{_listed(divisors(layers))}, or give --num_layers_in_first_stage or --num_layers_in_last_stage for "
            f"uneven stages"
        )
    elif uneven:
        left, middle = layers - sum(uneven.values()), stages - len(uneven)
        given = " and ".join(f"--{flag} {size}" for flag, size in uneven.items())
        if left < 0 or (middle > 0) != (left > 0) or (middle and left % middle):
            yield (
                f"{given} of {layers} layers leave {left} for the other {middle} of --pipeline_parallel_size {stages} "
                f"stages, and these must share them evenly with at least 1 each; change --{next(iter(uneven))}"
            )


def _virtual_stages(layout: Layout, shape: ModelShape) -> Iterator[str]:
    virtual, stages = layout.virtual, layout.pipeline
    if not virtual:
        return
    flag = f"--virtual_pipeline_parallel_size {virtual}"
    if stages == 1:
        yield f"{flag} needs --pipeline_parallel_size of 2 or more, and it is 1; leave it out"
        return
    uneven = _uneven_flags(layout)
    for name, size in uneven.items():
        if size % virtual:
            yield f"{flag} must divide --{name} {size}; change one of the two flags"
    left, middle = shape.num_layers - sum(uneven.values()), stages - len(uneven)
    if middle and left > 0 and left % middle == 0 and left // middle % virtual:
        yield (
            f"{flag} must divide the {left // middle} layers of a pipeline stage ({left} layers / {middle} stages); "
            f"set it to one of {_listed(divisors(left // middle)[1:]) or 'none'}, or leave it out"
        )


def _virtual_batch(layout: Layout, shape: ModelShape) -> Iterator[str]:
    stages, product = layout.pipeline, layout.micro_batch_size * layout.data
    if not layout.virtual or not product or layout.global_batch_size % product:
        return
    count = layout.global_batch_size // product
    if count % stages:
        yield (
            f"--virtual_pipeline_parallel_size {layout.virtual} needs the {count} micro-batches of a step to be a "
            f"multiple of --pipeline_parallel_size {stages}; set --global_batch_size to "
            f"{_nearest_multiples(layout.global_batch_size, product * stages)}"
        )


def _sequence(layout: Layout, shape: ModelShape) -> Iterator[str]:
    length, limit = layout.seq_length, shape.max_position_embeddings
    if limit is not None and length > limit:
        yield f"--seq_length {length} is longer than the model's {limit} positions; set --seq_length to at most {limit}"
    if layout.context > 1 and length % (2 * layout.context):
        yield (
            f"--seq_length {length} must be a multiple of 2 x --context_parallel_size {layout.context} = "
            f"{2 * layout.context}; set --seq_length to {_nearest_multiples(length, 2 * layout.context)}"
        )
    if layout.sequence_parallel and layout.tensor == 1:
        yield "--sequence_parallel true needs --tensor_parallel_size of 2 or more, and it is 1; leave it out"
    elif layout.sequence_parallel and length % (layout.tensor * layout.context):
        product = layout.tensor * layout.context
        yield (
            f"--seq_length {length} must be a multiple of tensor x context parallel = {layout.tensor} x "
            f"{layout.context} = {product} with sequence parallel; set --seq_length to "
            f"{_nearest_multiples(length, product)}, or --sequence_parallel false"
        )


def sample_multiple(layout: Layout) -> int:
    """Context parallel workers take two pieces each of every sample; with sequence parallel a piece is split again."""
    if not layout.packing or layout.context == 1:
        return 1
    return 2 * layout.context * (layout.tensor if layout.sequence_parallel else 1)


def _packing(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if not layout.packing:
        return
    if layout.micro_batch_size > 1:
        yield (
            f"--micro_batch_size {layout.micro_batch_size} must be 1 with --packing, where a row holds many samples; "
            f"set it to 1 and raise --seq_length instead"
        )
    multiple = sample_multiple(layout)
    if layout.seq_length % multiple and layout.seq_length % (2 * layout.context) == 0:
        yield (
            f"--seq_length {layout.seq_length} must be a multiple of {multiple} with --packing in this layout (2 x "
            f"context x tensor parallel); set --seq_length to {_nearest_multiples(layout.seq_length, multiple)}"
        )
    if shape.sees:
        yield f"--packing is for rows of text, and {shape.architecture}'s have images; leave --packing out"
    if shape.architecture == "Gemma2ForCausalLM":
        yield (
            "--packing is not possible with Gemma2ForCausalLM: Bridge 0.6.2 has an attention of its own for it "
            "(gemma2_provider.py); leave --packing out"
        )


def _experts(layout: Layout, shape: ModelShape) -> Iterator[str]:
    experts, flag = shape.num_experts, f"--expert_parallel_size {layout.expert}"
    if not experts:
        if layout.expert > 1:
            yield f"{flag} needs a mixture-of-experts model, and {shape.architecture} has no experts; leave it out"
        if layout.expert_tensor_given and layout.expert_tensor > 1:
            yield (
                f"--expert_tensor_parallel_size {layout.expert_tensor} needs a mixture-of-experts model, and "
                f"{shape.architecture} has no experts; leave it out"
            )
        return
    if experts % layout.expert:
        yield (
            f"{flag} must divide the model's {experts} experts; set --expert_parallel_size to one of "
            f"{_listed(divisors(experts))}"
        )
    inner = shape.moe_intermediate_size or shape.intermediate_size
    if inner % layout.expert_tensor:
        yield (
            f"--expert_tensor_parallel_size {layout.expert_tensor} (default: the tensor parallel size) must divide an "
            f"expert's feed-forward size {inner}; set it to one of {_listed(divisors(inner))}"
        )


def _expert_world(layout: Layout, shape: ModelShape) -> Iterator[str]:
    product = layout.expert_tensor * layout.expert * layout.pipeline
    if not shape.num_experts or layout.num_workers % product == 0:
        return
    way_out = f"--num_workers to {_nearest_multiples(layout.num_workers, product)}"
    if (copies := layout.copies_asked) and layout.data:
        step = product // math.gcd(product, layout.model_parallel)
        way_out = f"--data_parallel_size to {_nearest_multiples(copies, step)}, with as many workers as that makes"
    yield (
        f"--num_workers {layout.num_workers} must be a multiple of expert tensor x expert x pipeline parallel = "
        f"{layout.expert_tensor} x {layout.expert} x {layout.pipeline} = {product}; set {way_out}, or lower "
        f"--expert_parallel_size or --expert_tensor_parallel_size"
    )


def _expert_sequence(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if shape.num_experts and layout.tensor > 1 and not layout.sequence_parallel:
        yield (f"--tensor_parallel_size {layout.tensor} of a mixture-of-experts model needs --sequence_parallel true")


def default_expert_tensor(shape: ModelShape, tensor: int, adapters: bool) -> int:
    """Megatron's default is the tensor parallel size, where the family can have it and nothing is adapted."""
    family = _ONLY_ONE.get(shape.architecture, ("", ""))
    return 1 if adapters or not shape.num_experts or family[0] == "expert_tensor" else tensor


_ONLY_ONE = {
    "OlmoeForCausalLM": ("tensor", "Bridge 0.6.2 norms its queries and keys over all heads (olmoe_provider.py)"),
    "Gemma2ForCausalLM": ("context", "Bridge 0.6.2 has an attention of its own for it (gemma2_provider.py)"),
    "Qwen2_5_VLForConditionalGeneration": (
        "context",
        "Bridge 0.6.2 does not cut its images along the sequence (modeling_qwen25_vl.py)",
    ),
    "GptOssForCausalLM": ("expert_tensor", "its experts have biases, which Megatron-Core 0.19 does not split"),
}
"""What cannot be split in one family: architecture -> (size that must be 1, why)."""


def _family(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if shape.architecture in _ONLY_ONE:
        field, why = _ONLY_ONE[shape.architecture]
        flag, size = f"--{field}_parallel_size", getattr(layout, field)
        if size > 1:
            yield f"{flag} {size} must be 1 for {shape.architecture}: {why}; set {flag} to 1"


_NOT_WITH_TENSOR_PARALLEL = ("gate", "q_a_proj", "kv_a_proj_with_mqa")
"""What every tensor parallel worker has whole: the router, and the compressing projections of latent attention."""


def _adapters(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if layout.adapter_rank is None:
        return
    if shape.num_experts and layout.expert_tensor > 1:
        yield (
            f"--expert_tensor_parallel_size {layout.expert_tensor} must be 1 with --peft: Bridge 0.6.2 does not add up "
            f"the parts of an expert's adapter (peft/utils.py); set it to 1"
        )
    wrong = [name for name in layout.adapter_targets if name in _NOT_WITH_TENSOR_PARALLEL]
    if wrong and layout.tensor > 1:
        yield (
            f"--tensor_parallel_size {layout.tensor} must be 1 with adapters on {', '.join(wrong)}, which Bridge 0.6.2 "
            f"trains otherwise than PEFT then; leave them out of --lora_target_modules, or set it to 1"
        )
    if layout.adapter_rank % layout.tensor:
        yield (
            f"--lora_rank {layout.adapter_rank} must be a multiple of --tensor_parallel_size {layout.tensor}: "
            f"tensor parallel workers share an adapter's rank"
        )


def _fsdp(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if layout.fsdp != "none" and layout.pipeline > 1:
        yield (
            f"--pipeline_parallel_size {layout.pipeline} must be 1 with --megatron_fsdp {layout.fsdp}, which "
            f"Megatron-Core 0.19.2 does not cut into stages; set it to 1"
        )


_RECORDED = tuple(f"{family}ForCausalLM" for family in ("Gemma2", "Llama", "Mistral", "Nemotron", "Qwen2", "Qwen3"))
"""Families whose steps with CUDA graphs were compared with steps without."""


def _graphs(layout: Layout, shape: ModelShape) -> Iterator[str]:
    if layout.cuda_graphs and shape.architecture not in _RECORDED:
        yield (
            f"--cuda_graphs is for {', '.join(_RECORDED)}, and has not been tried with the model's "
            f"{shape.architecture}; leave it out"
        )


def _uneven_flags(layout: Layout) -> dict[str, int]:
    given = {"num_layers_in_first_stage": layout.first_stage, "num_layers_in_last_stage": layout.last_stage}
    return {flag: size for flag, size in given.items() if size is not None}


def divisors(number: int) -> list[int]:
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return sorted({*small, *(number // size for size in small)})


def _nearest_multiples(value: int, factor: int) -> str:
    """`8 or 12` for value 10 and factor 4: the multiples on either side, without 0."""
    below = value // factor * factor
    return " or ".join(str(multiple) for multiple in (below, below + factor) if multiple)


def _listed(sizes: list[int]) -> str:
    return ", ".join(str(size) for size in sizes[:12])

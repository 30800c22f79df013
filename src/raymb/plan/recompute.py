"""Activations that are not kept: what recomputation and offload ask of a layout. Megatron-Core 0.19.2 does it in
core/recompute.py (whole layers), transformer_layer.py and moe/ (modules), and Transformer Engine's cpu_offload.py."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.sizes import Layout, layers_per_stage

_OF_EXPERTS = ("layernorm", "moe", "moe_act", "shared_experts")
"""Modules of sparse layers. Transformer Engine joins a dense layer's norms with the matrices behind them, so that
`layernorm` finds none there."""


def recompute_problems(layout: Layout, shape: ModelShape) -> Iterator[str]:
    """A sentence for every reason why these layers or modules cannot be recomputed, or wait on the host."""
    chunk = min(layers_per_stage(layout, shape.num_layers)) // (layout.virtual or 1)
    if layout.recompute == "full" and layout.recompute_layers > chunk:
        what = "a chunk" if layout.virtual else "a stage"
        yield (
            f"--recompute_num_layers {layout.recompute_layers} must not be more than the {chunk} layers of {what}; "
            f"lower it, or leave it out"
        )
    for module in layout.recompute_modules:
        if module in _OF_EXPERTS and not shape.num_experts:
            yield (
                f"--recompute_modules {module} needs a mixture-of-experts model, and {shape.architecture} has no "
                f"experts; leave it out"
            )
        elif module == "shared_experts" and not shape.shared_experts_size:
            yield f"--recompute_modules shared_experts: {shape.architecture} has none; leave it out"
        elif module == "mlp" and shape.sparse_layers == shape.num_layers:
            yield f"--recompute_modules mlp: every layer of {shape.architecture} has experts; write moe"
        elif module == "mla_up_proj" and shape.attention != "mla":
            yield f"--recompute_modules mla_up_proj needs latent attention, and the model's is {shape.attention}"
    yield from _offload_problems(layout, shape)


def _offload_problems(layout: Layout, shape: ModelShape) -> Iterator[str]:
    flag = f"--activation_offload_layers {layout.offloaded_layers}"
    if not layout.offloaded_layers:
        return
    if layout.pipeline > 1:
        yield f"{flag} needs --pipeline_parallel_size 1, and it is {layout.pipeline}; recompute layers instead"
    if layout.offloaded_layers >= shape.num_layers:
        yield f"{flag} must be less than the model's {shape.num_layers} layers"


def recomputed_layers(layout: Layout, layers: int) -> float:
    """Of a stage with so many layers, those that are computed again as a whole."""
    if layout.recompute != "full":
        return 0.0
    chunks = layout.virtual or 1
    return layers if layout.recompute_method == "uniform" else min(layout.recompute_layers * chunks, layers)


def recomputed_work(layout: Layout, shape: ModelShape) -> float:
    """Share of a forward pass's matrix products that is done twice, of an average layer."""
    if layout.recompute == "full":
        return recomputed_layers(layout, shape.num_layers // layout.pipeline) / (shape.num_layers // layout.pipeline)
    if layout.recompute != "selective":
        return 0.0
    sparse, hidden = shape.sparse_layers / shape.num_layers, shape.hidden_size
    attention = 2 * hidden * (shape.num_attention_heads + shape.num_kv_heads) * shape.head_dim
    dense = 3 * hidden * shape.intermediate_size * (1 - sparse)
    shared = 3 * hidden * shape.shared_experts_size * sparse
    routed = 3 * hidden * (shape.moe_intermediate_size or 0) * (shape.experts_per_token or 0) * sparse
    again = {"mlp": dense, "shared_experts": shared, "moe": routed + shared}
    return sum(again.get(module, 0.0) for module in layout.recompute_modules) / (attention + dense + shared + routed)

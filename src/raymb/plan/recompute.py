"""What recomputation takes of a layout: layers that are computed again, and the work that is done twice."""

from __future__ import annotations

from raymb.model.shape import ModelShape
from raymb.plan.sizes import DetailedLayout


def recomputed_layers(layout: DetailedLayout, layers: int) -> float:
    """Of a stage with so many layers, those that are computed again as a whole."""
    if layout.recompute != "full":
        return 0.0
    chunks = layout.virtual_pipeline_parallel_size or 1
    return layers if layout.recompute_method == "uniform" else min(layout.recompute_num_layers * chunks, layers)


def recomputed_work(layout: DetailedLayout, shape: ModelShape) -> float:
    """Share of a forward pass's matrix products that is done twice, of an average layer."""
    if layout.recompute == "full":
        return recomputed_layers(layout, shape.num_layers // layout.pipeline_parallel_size) / (
            shape.num_layers // layout.pipeline_parallel_size
        )
    if layout.recompute != "selective":
        return 0.0
    sparse, hidden = shape.sparse_layers / shape.num_layers, shape.hidden_size
    attention = 2 * hidden * (shape.num_attention_heads + shape.num_kv_heads) * shape.head_dim
    dense = 3 * hidden * shape.intermediate_size * (1 - sparse)
    shared = 3 * hidden * shape.shared_experts_size * sparse
    routed = 3 * hidden * (shape.moe_intermediate_size or 0) * (shape.experts_per_token or 0) * sparse
    again = {"mlp": dense, "shared_experts": shared, "moe": routed + shared}
    return sum(again.get(module, 0.0) for module in layout.recompute_modules) / (attention + dense + shared + routed)

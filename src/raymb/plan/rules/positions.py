"""Attention windows and rotary positions that the model is not computed with, as transformers computes it."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.families import family_of
from raymb.model.shape import ModelShape
from raymb.plan.sizes import DetailedLayout


def rotary(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    computed = family_of(shape.architecture).rope_types
    if computed is None:
        return
    for field, kind in shape.rope:
        # Bridge scales those of layers without a window only. Older files of Qwen2.5-VL call the default "mrope".
        usable = ("default", "mrope", *(() if field.endswith("sliding_attention") else computed))
        if kind not in usable:
            others = ", ".join(one for one in usable if one != "mrope")
            yield (
                f"config.json's {field} of type {kind} is not computed for {shape.architecture} ({others} would be), "
                f"and it makes a difference at every --seq_length; take {field} out of config.json if the model was "
                f"made without it, to be stretched when it generates; else train another model"
            )
        elif shape.rope_limit is not None and layout.seq_length > shape.rope_limit:
            yield (
                f"--seq_length {layout.seq_length} is longer than {shape.rope_limit} tokens, up to which config.json's "
                f"{field} of type {kind} has fixed frequencies; beyond, transformers chooses them by a batch's longest "
                f"sample; set --seq_length to at most {shape.rope_limit}"
            )


def windows(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    family, window = family_of(shape.architecture), shape.window
    if window is None:
        return
    every = family.full_attention_every
    usual = tuple(range(every, shape.num_layers + 1, every)) if every else None
    if usual is not None and shape.layers_without_window not in (None, usual):
        yield (
            f"config.json has layers without a sliding window at {list(shape.layers_without_window or ())}, and Bridge "
            f"0.6.2 has them at {every}, {2 * every}, ... of {shape.architecture} as a constant; train another model"
        )
    yield from _irregular(shape)
    if layout.seq_length <= window:
        return
    if family.no_window:
        yield (
            f"--seq_length {layout.seq_length} is longer than config.json's sliding_window {window}: "
            f"{family.no_window}; set --seq_length to at most {window}, where it makes no difference"
        )
    parts = layout.tensor_parallel_size * layout.context_parallel_size
    if layout.context_parallel_size > 1 and shape.num_kv_heads % parts:
        yield (
            f"--context_parallel_size {layout.context_parallel_size} x --tensor_parallel_size "
            f"{layout.tensor_parallel_size} must divide the model's {shape.num_kv_heads} key-value heads where "
            f"--seq_length {layout.seq_length} is longer than config.json's sliding_window {window}: the workers "
            f"exchange heads then; set --context_parallel_size to 1"
        )


def indexers(layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    """Of DeepSeek's sparse attention."""
    if "shared" in shape.indexers and layout.pipeline_parallel_size > 1:
        yield (
            f"--pipeline_parallel_size {layout.pipeline_parallel_size} must be 1: layers of {shape.architecture} look "
            f"at the tokens that a layer before them has chosen, which Megatron-Core 0.19 does not hand on to another "
            f"pipeline stage (dsa.py); set it to 1"
        )
    if shape.indexed_limit is not None and layout.seq_length > shape.indexed_limit:
        yield (
            f"--seq_length {layout.seq_length} is longer than config.json's index_topk {shape.indexed_limit}: beyond, "
            f"indexers choose the tokens, and transformers 5.12.1 does not turn their positions as the model's "
            f"indexer_rope_interleave says (GlmMoeDsaIndexer), so that nothing could be compared; set --seq_length to "
            f"at most {shape.indexed_limit}"
        )


def _irregular(shape: ModelShape) -> Iterator[str]:
    """Where Bridge takes all layers to be as the first ones are."""
    layers = shape.layers_without_window
    if family_of(shape.architecture).window_layers != "by Bridge" or not shape.num_experts or not layers:
        return
    every = layers[0]
    if layers != tuple(range(every, shape.num_layers + 1, every)):
        yield (
            f"config.json has layers without a sliding window at {list(layers)}, and Bridge 0.6.2 would have them at "
            f"{every}, {2 * every}, ... of {shape.architecture} (gemma4_bridge.py, _infer_attn_pattern); train another "
            f"model"
        )

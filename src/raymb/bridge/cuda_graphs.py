"""CUDA graphs of layers, as Megatron-Core records them, without the masks that nobody reads."""

from __future__ import annotations

import importlib

GRAPHS = {"cuda_graph_impl": "transformer_engine", "cuda_graph_modules": [], "use_te_rng_tracker": True}
"""Fields of the model's provider: whole layers are recorded."""


def leave_out_masks() -> None:
    """Megatron-Core 0.19.2 gives every recorded layer a mask of its own, [micro batch, 1, sequence, sequence] bytes,
    and fills it with zeros before each launch: 3 GB at 8 x 4096 tokens in 24 layers. Causal attention reads none, nor
    is it given one without graphs."""
    layer = importlib.import_module("megatron.core.transformer.transformer_layer").TransformerLayer
    base = importlib.import_module("megatron.core.transformer.module").GraphableMegatronModule
    for name in ("get_layer_static_inputs", "_get_te_cuda_graph_replay_args"):
        setattr(layer, name, getattr(base, name))

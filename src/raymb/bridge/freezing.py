"""Parameters that stay as they are: settled before Megatron makes buffers and an optimizer for the others."""

from __future__ import annotations

from typing import Any

import torch
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.models.conversion.model_bridge import _megatron_local_name_to_global

from raymb.plan.frozen import is_frozen
from raymb.spec.training import Train

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


def freeze(hf_bridge: AutoBridge, train: Train, model: list[Any]) -> list[Any]:
    """Freeze what --freeze and --unfreeze ask for in this rank's model chunks; a hook of Bridge's provider.

    Every rank that has a part or a copy of a parameter goes by the same Hugging Face name.
    """
    registry = hf_bridge._model_bridge.mapping_registry()
    for stage, chunk in enumerate(model):
        for name, parameter in chunk.named_parameters():
            whole = _megatron_local_name_to_global(model, chunk.config, name, stage)
            whole = source_of(chunk, whole)
            mapping = registry.megatron_to_hf_lookup(whole)
            theirs = mapping.hf_param if mapping else whole
            names = [theirs] if isinstance(theirs, str) else list(theirs.values())
            parameter.requires_grad = not all(is_frozen(one, train) for one in names)
        let_gradients_through(chunk)
    return model


def let_gradients_through(chunk: Any) -> None:
    """What is recomputed has gradients only if its input has: parameters alone do not ask for any."""
    if chunk.config.recompute_granularity and (embedding := getattr(chunk, "embedding", None)):
        embedding.register_forward_hook(_needs_gradient)


def source_of(chunk: Any, name: str) -> str:
    """A parameter's name; of the last stage's copy of a tied embedding the embedding's."""
    return EMBEDDING if name == OUTPUT and chunk.share_embeddings_and_output_weights else name


def _needs_gradient(embedding: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() and output.is_leaf else output

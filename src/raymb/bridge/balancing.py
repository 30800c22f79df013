"""The losses that balance a MoE model's experts, and its router biases, count the tokens that the loss counts.

Megatron counts all of them, padding too: its share in these losses is as large as the padding, and their weight beside
the loss grows by the tokens of a micro batch that are not trained.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.bridge.training import gpt_step
from megatron.bridge.training.state import GlobalState
from megatron.core.models.gpt import GPTModel
from megatron.core.utils import get_batch_on_this_cp_rank, unwrap_model


def counting_trained_tokens(bridges_step: Callable) -> Callable:
    """Bridge's forward step with a mask for the routers: of every stage, as those between the first and the last get no
    batch from Bridge."""

    def step(state: GlobalState, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        inner: Any = unwrap_model(model)
        if inner.config.num_moe_experts is None:
            return bridges_step(state, data_iterator, model, return_schedule_plan)
        batch = next(data_iterator)
        give = partial(_give, _not_trained(batch, inner))
        hook = inner.register_forward_pre_hook(give, with_kwargs=True)
        try:
            return bridges_step(state, iter([batch]), model, return_schedule_plan)
        finally:
            hook.remove()

    step.__annotations__["state"] = GlobalState  # as a string Bridge would not recognise it
    return step


def _not_trained(batch: dict[str, Any], model: Any) -> torch.Tensor:
    """[rows, tokens of this rank], true where a token is no target."""
    group, config = model.pg_collection.cp, model.config
    # Of packed rows, which are cut among context parallel workers by where their samples begin.
    names = [name for name in batch if name.startswith("cu_seqlens")] if group.size() > 1 else []
    own = {name: batch[name].cuda(non_blocking=True) for name in ("loss_mask", *names)}
    if names:
        own = gpt_step._partition_packed_batch_for_cp(own, group)
    else:
        own = get_batch_on_this_cp_rank(own, is_hybrid_cp=False, cp_group=group)
    mask = own["loss_mask"] == 0
    # Megatron-Core 0.19.2 cuts the mask for sequence parallel in a GPTModel's first stage, and nowhere else.
    if config.sequence_parallel and not (isinstance(model, GPTModel) and model.pre_process):
        mask = mask.chunk(model.pg_collection.tp.size(), dim=1)[model.pg_collection.tp.rank()]
    return mask


def _give(mask: torch.Tensor, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "padding_mask": mask}

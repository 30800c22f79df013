"""What ranks exchange, and do not agree on."""

from __future__ import annotations

import functools
from typing import Any

from raymb.bridge.patches.patch import Patch, text_of, upstream

_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
_QWEN_VL = "megatron.bridge.models.qwen_vl.modeling_qwen25_vl:Qwen25VLModel.forward"
_GPT = "megatron.core.models.gpt:GPTModel"


def give_every_rank_the_whole_list_of_state() -> None:
    """In the order of the weights, which is the same on all ranks."""
    cls = upstream(_OPTIMIZER)
    if hasattr(cls, "_raymb_fsdp_state"):
        return
    cls._raymb_fsdp_state = cls.sharded_param_state_fsdp_dtensor

    def whole(self: Any, is_loading: bool = False) -> dict[str, Any]:
        state = self._raymb_fsdp_state(is_loading)
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for weight in (weight for weight in weights if not self.optimizer.state.get(weight)):
            self.optimizer.initialize_state(weight, False)
        return {**state, "state": {self._param_name(weight): self.optimizer.state[weight] for weight in weights}}

    cls.sharded_param_state_fsdp_dtensor = whole


def lay_out_embeddings() -> None:
    """As [sequence, batch, hidden] in memory, too."""
    cls = upstream(_GPT)
    if hasattr(cls, "_raymb_forward"):
        return
    cls._raymb_forward = cls.forward

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, decoder_input: Any = None, **settings: Any) -> Any:
        whole = None if decoder_input is None else decoder_input.contiguous()
        return self._raymb_forward(*args, decoder_input=whole, **settings)

    cls.forward = forward


def _ranks_list_their_own_state() -> bool:
    text = text_of(f"{_OPTIMIZER}.sharded_param_state_fsdp_dtensor")
    return "for k, v in self.state.items()" in text and "initialize_state" not in text


def _embeddings_are_a_view() -> bool:
    """The last transposition before the decoder; the one in front of the images is laid out."""
    last = text_of(_QWEN_VL).rpartition("inputs_embeds = inputs_embeds.transpose( 1, 0 )")
    return bool(last[0]) and "contiguous" not in last[2]


PATCHES = (
    Patch(
        "optimizer state of every weight on every rank",
        "megatron-core",
        "0.19.2",
        f"{_OPTIMIZER}.sharded_param_state_fsdp_dtensor",
        "under Megatron-FSDP a rank whose part of a weight is empty has no optimizer state of it, and what it has is "
        "in the order of its own first gradients; but a checkpoint's ranks walk through the state together "
        "(megatron.core.transformer.fsdp_dtensor_checkpoint), and wait for each other for ever",
        _ranks_list_their_own_state,
        give_every_rank_the_whole_list_of_state,
    ),
    Patch(
        "embeddings of images and text laid out",
        "megatron-bridge",
        "0.6.2",
        _QWEN_VL,
        "hands on embeddings that are only viewed as [sequence, batch, hidden]; with micro batches of 2 and more every "
        "layer's output is strided so, and the exchange between pipeline stages refuses it",
        _embeddings_are_a_view,
        lay_out_embeddings,
    ),
)

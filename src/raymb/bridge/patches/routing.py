"""Which layers have experts, and how a token finds its experts, where Bridge or Megatron-Core has it otherwise than the
model."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from raymb.bridge.patches.patch import Patch, text_of, upstream

_ROUTER = "megatron.core.transformer.moe.router"
_TOP_K = "topk_routing_with_score_function"
_MOE, _COUNT = "megatron.core.transformer.moe.moe_utils", "get_tokens_per_expert_and_token_count"
_ERNIE = "megatron.bridge.models.ernie.ernie_45_bridge:Ernie45Bridge.provider_bridge"
_GLM5 = "megatron.bridge.models.glm_moe_dsa.glm5_bridge:GLM5Bridge.provider_bridge"
_HY3 = "megatron.bridge.models.hy_v3.hy_v3_bridge:HYV3Bridge.provider_bridge"


def give_layers_with_experts(hf_config: Any, provider: Any) -> None:
    """As transformers has them, where Bridge says it layer by layer."""
    if not isinstance(getattr(provider, "moe_layer_freq", None), list):
        return
    kinds = getattr(hf_config, "mlp_layer_types", None)
    if kinds is not None:
        provider.moe_layer_freq = [int(kind == "sparse") for kind in kinds]
    elif hasattr(hf_config, "moe_layer_interval"):
        first, last, every = (getattr(hf_config, f"moe_layer_{name}") for name in _OF_ERNIE)
        layers = range(hf_config.num_hidden_layers)
        provider.moe_layer_freq = [int(first <= layer <= last and (layer + 1) % every == 0) for layer in layers]


_OF_ERNIE = ("start_index", "end_index", "interval")


def leave_out_flex_dispatcher(provider: Any) -> None:
    """Unless the user asks for it, in which case raymb.bridge.moe sets it again."""
    if getattr(provider, "moe_token_dispatcher_type", None) == "flex":
        provider.moe_token_dispatcher_type, provider.moe_flex_dispatcher_backend = "alltoall", "deepep"


def choose_by_softmax_and_bias(provider: Any) -> None:
    """Experts whose softmax over all, plus a bias, is largest; they are weighed by their softmax alone."""
    router = importlib.import_module(_ROUTER)
    if not hasattr(router, "_raymb_top_k"):
        router._raymb_top_k = getattr(router, _TOP_K)  # type: ignore[attr-defined]
        setattr(router, _TOP_K, _top_k)
    # Megatron-Core's configuration takes a bias with sigmoid only.
    provider.register_pre_wrap_hook(_score_by_softmax)


def _score_by_softmax(chunks: list[Any]) -> list[Any]:
    router = upstream(f"{_ROUTER}:TopKRouter")
    for module in (module for chunk in chunks for module in chunk.modules() if isinstance(module, router)):
        module.score_function = "softmax"
    return chunks


def _top_k(logits: torch.Tensor, topk: int, **settings: Any) -> Any:
    if settings.get("score_function") == "softmax" and settings.get("expert_bias") is not None:
        scores = torch.softmax(logits, dim=-1, dtype=torch.float32) + settings["expert_bias"].float()
        chosen = torch.topk(scores, topk, dim=1).indices
        settings |= {"precomputed_indices": chosen, "use_pre_softmax": False, "fused": False}
    return upstream(_ROUTER)._raymb_top_k(logits, topk, **settings)


def weigh_by_all_ranks() -> None:
    """A rank's part of a balancing loss, whose gradients are summed, counts as much as the tokens of all ranks."""
    router: Any = importlib.import_module(_ROUTER)
    if hasattr(router, "_raymb_count"):
        return
    count = router._raymb_count = getattr(router, _COUNT)

    def of_all_ranks(routing_map: torch.Tensor, reduce_group: Any, **settings: Any) -> tuple[torch.Tensor, Any, Any]:
        experts, _, total = count(routing_map, reduce_group, **settings)
        if isinstance(total, torch.Tensor):  # with a mask; a micro batch in which nothing is trained has a loss of 0
            total = total.clamp(min=1)
        return experts, total / reduce_group.size(), total

    setattr(router, _COUNT, of_all_ranks)


def count_for_bias_with_mask() -> None:
    """A bias counts each expert's tokens without those that a mask leaves out."""
    cls = upstream(f"{_ROUTER}:TopKRouter")
    if hasattr(cls, "_raymb_bias"):
        return
    cls._raymb_bias = cls._apply_expert_bias

    def with_mask(self: Any, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None) -> None:
        self._raymb_bias(routing_map, None if padding_mask is None else padding_mask.unsqueeze(-1))

    cls._apply_expert_bias = with_mask


def mend(hf_config: Any, provider: Any, architecture: str) -> None:
    """Of a provider that Bridge has made."""
    give_layers_with_experts(hf_config, provider)
    leave_out_flex_dispatcher(provider)
    if architecture == "Ernie4_5_MoeForCausalLM":
        choose_by_softmax_and_bias(provider)


def _knows_layers_by_another_name() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")  # first: it is part of a circle
    return "moe_layer_interval" not in text_of(_ERNIE) and "mlp_layer_types" not in text_of(_HY3)


def _asks_for_hybridep() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")
    return 'provider.moe_token_dispatcher_type = "flex"' in text_of(_GLM5)


def _scores_by_sigmoid() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")
    return 'provider.moe_router_score_function = "sigmoid"' in text_of(_ERNIE)


def _weighs_by_one_rank() -> bool:
    return "local_num_tokens = local_tokens_per_expert.sum() / topk" in text_of(f"{_MOE}:{_COUNT}")


def _takes_no_mask_with_bias() -> bool:
    return "routing_map = routing_map & (~padding_mask)" in text_of(f"{_ROUTER}:TopKRouter._apply_expert_bias")


PATCHES = (
    Patch(
        "layers with experts",
        "megatron-bridge",
        "0.6.2",
        _HY3,
        "asks for first_k_dense_replace where transformers 5 has mlp_layer_types, and Ernie45Bridge drops "
        "moe_layer_interval and moe_layer_end_index: other layers have experts than the model's",
        _knows_layers_by_another_name,
        give_layers_with_experts,
    ),
    Patch(
        "dispatcher of GLM-5",
        "megatron-bridge",
        "0.6.2",
        _GLM5,
        "asks for the dispatcher flex with HybridEP, whose package is not installed: the first layer fails on GPUs",
        _asks_for_hybridep,
        leave_out_flex_dispatcher,
    ),
    Patch(
        "routing of ERNIE 4.5",
        "megatron-bridge",
        "0.6.2",
        _ERNIE,
        "routes by sigmoid, where the model chooses experts by their softmax and a bias; Megatron-Core 0.19.2 has no "
        "bias with softmax (TransformerConfig)",
        _scores_by_sigmoid,
        choose_by_softmax_and_bias,
    ),
    Patch(
        "weight of balancing losses",
        "megatron-core",
        "0.19.2",
        f"{_MOE}:{_COUNT}",
        "with a mask the losses that balance experts are weighed by a rank's own tokens times the ranks that share a "
        "sequence, which is not their sum; where a micro batch has no tokens they are NaN",
        _weighs_by_one_rank,
        weigh_by_all_ranks,
    ),
    Patch(
        "router bias with a mask",
        "megatron-core",
        "0.19.2",
        f"{_ROUTER}:TopKRouter._apply_expert_bias",
        "the mask has no dimension for experts: the first layer of a model with a router bias fails",
        _takes_no_mask_with_bias,
        count_for_bias_with_mask,
    ),
)

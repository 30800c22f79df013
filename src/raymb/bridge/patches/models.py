"""Numbers of a Hugging Face model that Bridge drops, or has as constants."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from raymb.bridge.patches.patch import Patch, text_of, upstream

_POST_NORM = "megatron.bridge.models.common.te_layers:TERowParallelLinearLayerNorm"
_NORM = "megatron.core.extensions.transformer_engine:TENorm"
_LATENT = "megatron.core.transformer.mla_qk_norm_config:QKNormConfigResolver._resolve_mla_qk_layernorm"
_QWEN_VL = "megatron.bridge.models.qwen_vl.qwen25_vl_bridge:Qwen25VLBridge.provider_bridge"
_QWEN_VL_PROVIDER = "megatron.bridge.models.qwen_vl.qwen25_vl_provider:Qwen25VLModelProvider"


def give_post_norms_their_epsilon() -> None:
    """The model's own."""
    cls = upstream(_POST_NORM)
    if hasattr(cls, "_raymb_init"):
        return
    cls._raymb_init = cls.__init__

    def init(self: Any, input_size: int, output_size: int, *, config: Any, **settings: Any) -> None:
        self._raymb_init(input_size, output_size, config=config, **settings)
        self.post_layernorm.eps = config.layernorm_epsilon

    cls.__init__ = init


def leave_queries_without_a_latent_unnormed() -> None:
    """Only a latent that queries are made from has a norm (DeepSeek-V2-Lite has none)."""
    cls = upstream(_LATENT.rpartition(".")[0])
    if hasattr(cls, "_raymb_resolve"):
        return
    cls._raymb_resolve = cls._resolve_mla_qk_layernorm

    def resolve(self: Any) -> dict[str, Any]:
        own = {} if self.has_q_lora else {"linear_q_proj": self.submodules.linear_q_proj or self.linear_impl}
        return self._raymb_resolve() | own

    cls._resolve_mla_qk_layernorm = resolve


def pass_on_mrope_sections(hf_config: Any, provider: Any) -> None:
    """How rotary positions are shared among time, height and width."""
    text = getattr(hf_config, "text_config", hf_config)
    sections = (getattr(text, "rope_parameters", None) or {}).get("mrope_section")
    if sections and hasattr(provider, "mrope_section"):
        provider.mrope_section = list(sections)


def _norms_take_the_default() -> bool:
    taken = inspect.signature(upstream(_NORM).__new__).parameters["eps"].default
    return taken == 1e-5 and "TENorm(config, output_size)" in text_of(f"{_POST_NORM}.__init__")


def _norms_every_query() -> bool:
    return "self._mla_fused_linear_or_default( self.submodules.linear_q_proj" in text_of(_LATENT)


def _drops_sections_of_qwen_vl() -> bool:
    importlib.import_module("megatron.bridge.models.qwen_vl.qwen25_vl_bridge")
    return "mrope_section" not in text_of(_QWEN_VL) and "mrope_section" in text_of(_QWEN_VL_PROVIDER)


PATCHES = (
    Patch(
        "epsilon of norms after layers",
        "megatron-bridge",
        "0.6.2",
        f"{_POST_NORM}.__init__",
        "the norm after a row parallel layer (Gemma 2 and 3) takes TENorm's epsilon of 1e-5 whatever the model says, "
        "which moves logits by 1e-4",
        _norms_take_the_default,
        give_post_norms_their_epsilon,
    ),
    Patch(
        "rotary sections of Qwen 2.5 VL",
        "megatron-bridge",
        "0.6.2",
        _QWEN_VL,
        "leaves out how rotary positions are shared among time, height and width, and Qwen25VLModelProvider has the "
        "published models' numbers as constants",
        _drops_sections_of_qwen_vl,
        pass_on_mrope_sections,
    ),
    Patch(
        "queries without a latent",
        "megatron-core",
        "0.19.2",
        _LATENT,
        "norms the input of queries once more where q_lora_rank is null (DeepSeek-V2-Lite): loading fails, as no file "
        "has the norm's weights",
        _norms_every_query,
        leave_queries_without_a_latent_unnormed,
    ),
)

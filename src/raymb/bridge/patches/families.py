"""What Bridge has otherwise than a family's models, or leaves out: a function a family, and one for all of them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.distributed as dist

from raymb.bridge.patches.patch import Patch, text_of, upstream
from raymb.model.positions import complete_rotary

_EXAONE4 = "megatron.bridge.models.exaone.exaone4.exaone4_bridge:Exaone4Bridge"
_EXAONE4_SPEC = "megatron.bridge.models.exaone.exaone4.exaone4_provider:exaone4_layer_spec"
_HY3 = "megatron.bridge.models.hy_v3.hy_v3_bridge:HYV3Bridge.provider_bridge"
_GLM5 = "megatron.bridge.models.glm_moe_dsa.glm5_bridge:GLM5Bridge.provider_bridge"
_KWARGS = "megatron.bridge.models.conversion.model_bridge:MegatronModelBridge.hf_config_to_provider_kwargs"
_MINIMAX = "megatron.bridge.models.minimax_m2.minimax_m2_bridge:_FullDimQKNormMapping"
_FULL_NORM = "megatron.bridge.models.minimax_m2.minimax_m2_provider:_FullDimRMSNorm"
_GEMMA4 = "megatron.bridge.models.gemma.gemma4_provider:Gemma4DenseProvider.build"
_ASKED = {
    "HYV3ForCausalLM": {"first_k_dense_replace": 0},
    "GlmMoeDsaForCausalLM": {"indexer_rope_interleave": False, "index_skip_topk_offset": 2},
}
"""Settings that Bridge asks for and config.json may leave out, as transformers computes such a model. How many layers
have no experts is given by raymb.bridge.patches.routing in any case."""


def complete_config(hf_config: Any, architecture: str) -> None:
    """Before Bridge reads it."""
    complete_rotary(hf_config)
    for name, value in _ASKED.get(architecture, {}).items():
        if not hasattr(hf_config, name):
            setattr(hf_config, name, value)
    if architecture == "Gemma4ForCausalLM" and not hf_config.attention_k_eq_v:
        hf_config.num_global_key_value_heads = hf_config.num_key_value_heads


def give_dropout(hf_config: Any, provider: Any) -> None:
    """None, where the model has no setting of it."""
    provider.attention_dropout = getattr(hf_config, "attention_dropout", None) or 0.0


def map_output_layer_of_exaone4() -> None:
    """Of models whose output layer is not the embedding (32B)."""
    cls = upstream(_EXAONE4)
    if hasattr(cls, "_raymb_registry"):
        return
    cls._raymb_registry = cls.mapping_registry
    mappings = importlib.import_module("megatron.bridge.models.conversion.param_mapping")
    registry = importlib.import_module("megatron.bridge.models.conversion.mapping_registry")

    def mapping_registry(self: Any) -> Any:
        output = mappings.AutoMapping(megatron_param="output_layer.weight", hf_param="lm_head.weight")
        return registry.MegatronMappingRegistry(*self._raymb_registry().mappings, output)

    cls.mapping_registry = mapping_registry


def give_exaone4_attention_of_transformer_engine(provider: Any) -> None:
    """As other families have it."""
    engine = importlib.import_module("megatron.core.extensions.transformer_engine")
    make = upstream(_EXAONE4_SPEC)

    def layer_spec(config: Any) -> Any:
        spec = make(config)
        spec.submodules.self_attention.submodules.core_attention = engine.TEDotProductAttention
        return spec

    provider.transformer_layer_spec = layer_spec


def load_norms_of_minimax_m2_where_they_are() -> None:
    """Of queries and keys, over all heads of all tensor parallel workers."""
    cls = upstream(_MINIMAX)
    if hasattr(cls, "_raymb_load"):
        return
    cls._raymb_load = cls.hf_to_megatron

    def load(self: Any, hf_weights: torch.Tensor, megatron_module: Any) -> torch.Tensor:
        weight = megatron_module.weight
        if self.tp_size == 1 or weight.is_cuda:
            return self._raymb_load(hf_weights, megatron_module)
        size = len(weight)
        _, shard = self._get_shard_spec(shard_size=size, megatron_module=megatron_module, global_size_attr="global_dim")
        whole = hf_weights.to(weight) if self.tp_rank == 0 else torch.empty(megatron_module.global_dim).to(weight)
        return self.broadcast_tensor_to_tp_ranks(whole, src_rank=0)[shard * size : (shard + 1) * size]

    cls.hf_to_megatron = load


class _SumOverHeads(torch.autograd.Function):
    """Over all tensor parallel workers, each of which goes on with the sum: so its gradient is their sum, too."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def norm_over_heads(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """x [sequence, batch, heads of this worker, head], normed over the heads of all tensor parallel workers."""
    flat = x.reshape(*x.shape[:2], -1)
    wide, group = flat.to(torch.float32), norm._tp_group_getter()
    squares = wide.pow(2).sum(-1, keepdim=True)
    if group is not None and dist.get_world_size(group) > 1:
        # With fewer key-value groups than workers several have the same ones.
        squares = _SumOverHeads.apply(squares, group) * (norm.shard_world_size / dist.get_world_size(group))
    normed = wide * torch.rsqrt(squares / norm.global_dim + norm.eps)
    return (norm.weight * normed.to(flat.dtype)).reshape(x.shape)


def give_norms_of_minimax_m2_their_gradient(provider: Any) -> None:
    """Whole, with tensor parallel workers, and of each worker's own weights."""
    upstream(_FULL_NORM).forward = norm_over_heads
    provider.register_pre_wrap_hook(_keep_weights_apart)


def _keep_weights_apart(chunks: list[Any]) -> list[Any]:
    """A norm's weights are other ones on each tensor parallel worker; Megatron-Core takes them for the same."""
    norm = upstream(_FULL_NORM)
    for chunk in chunks:
        chunk.config.qk_layernorm = False  # read again for one thing only: whose gradients are summed
        for weight in (module.weight for module in chunk.modules() if isinstance(module, norm)):
            weight.tensor_model_parallel = True  # each worker's part counts in the gradient norm
    return chunks


def pad_vocabulary_of_gemma4_once(provider: Any) -> None:
    """The plan has padded it."""
    if hasattr(provider, "global_kv_channels"):  # the provider of models without experts
        provider.make_vocab_size_divisible_by = 1


def mend(hf_config: Any, provider: Any, architecture: str) -> None:
    """Of a provider that Bridge has made."""
    give_dropout(hf_config, provider)
    if architecture == "Exaone4ForCausalLM":
        map_output_layer_of_exaone4()
        give_exaone4_attention_of_transformer_engine(provider)
    if architecture == "MiniMaxM2ForCausalLM":
        load_norms_of_minimax_m2_where_they_are()
        give_norms_of_minimax_m2_their_gradient(provider)
    if architecture == "Gemma4ForCausalLM":
        pad_vocabulary_of_gemma4_once(provider)


def _asks_for_left_out_settings() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")  # first: it is part of a circle
    return "hf_config.first_k_dense_replace" in text_of(_HY3) and "hf_config.indexer_rope_interleave" in text_of(_GLM5)


def _has_dropout_by_default() -> bool:
    provider = upstream("megatron.bridge.models.gpt_provider:GPTModelProvider")
    return provider.attention_dropout > 0 and "attention_dropout" not in text_of(_KWARGS)


def _has_no_output_layer() -> bool:
    return 'lm_head.weight"' not in text_of(f"{_EXAONE4}.mapping_registry")


def _loads_norms_on_gpus_only() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")  # first: it is part of a circle
    return 'torch.device("cuda", torch.cuda.current_device())' in text_of(f"{_MINIMAX}.hf_to_megatron")


def _sums_without_a_gradient() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")  # first: it is part of a circle
    return "dist.all_reduce(local_ss, op=dist.ReduceOp.SUM, group=tp_group)" in text_of(f"{_FULL_NORM}.forward")


def _pads_the_vocabulary() -> bool:
    importlib.import_module("megatron.bridge.models.conversion.auto_bridge")  # first: it is part of a circle
    return "make_vocab_size_divisible_by - 1" in text_of(_GEMMA4)


def _has_own_attention() -> bool:
    return "core_attention=DotProductAttention" in text_of(_EXAONE4_SPEC)


PATCHES = (
    Patch(
        "settings that may be left out",
        "megatron-bridge",
        "0.6.2",
        _HY3,
        "asks for first_k_dense_replace, and GLM5Bridge for indexer_rope_interleave, of a config.json that needs "
        "neither in transformers: AttributeError",
        _asks_for_left_out_settings,
        complete_config,
    ),
    Patch(
        "dropout of attention",
        "megatron-bridge",
        "0.6.2",
        _KWARGS,
        "leaves Megatron-Core's dropout of 0.1 in attention where config.json has no attention_dropout (ERNIE 4.5)",
        _has_dropout_by_default,
        give_dropout,
    ),
    Patch(
        "output layer of EXAONE 4",
        "megatron-bridge",
        "0.6.2",
        f"{_EXAONE4}.mapping_registry",
        "has no name for an output layer that is not the embedding: AttributeError while the weights are loaded",
        _has_no_output_layer,
        map_output_layer_of_exaone4,
    ),
    Patch(
        "attention of EXAONE 4",
        "megatron-bridge",
        "0.6.2",
        _EXAONE4_SPEC,
        "has Megatron-Core's own attention, which holds all scores of a head in memory and knows neither packed rows "
        "nor context parallel workers",
        _has_own_attention,
        give_exaone4_attention_of_transformer_engine,
    ),
    Patch(
        "vocabulary of Gemma 4",
        "megatron-bridge",
        "0.6.2",
        _GEMMA4,
        "pads the vocabulary to multiples of 128 whatever its size, and then cannot load the model's embedding",
        _pads_the_vocabulary,
        pad_vocabulary_of_gemma4_once,
    ),
    Patch(
        "norms of MiniMax-M2",
        "megatron-bridge",
        "0.6.2",
        f"{_MINIMAX}.hf_to_megatron",
        "asks for a CUDA device by number: with tensor parallel workers on CPUs loading ends in a TypeError",
        _loads_norms_on_gpus_only,
        load_norms_of_minimax_m2_where_they_are,
    ),
    Patch(
        "gradient of MiniMax-M2's norms",
        "megatron-bridge",
        "0.6.2",
        f"{_FULL_NORM}.forward",
        "adds up squares over tensor parallel workers by a collective without a gradient: gradients are off by 0.3 %; "
        "and Megatron-Core 0.19.2 sums their weights' gradients, as if all workers had the same (finalize_model_grads)",
        _sums_without_a_gradient,
        give_norms_of_minimax_m2_their_gradient,
    ),
)

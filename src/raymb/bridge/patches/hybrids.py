"""What Bridge leaves out of models whose layers have states, or has as constants."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from raymb.bridge.patches.patch import Patch, text_of, upstream

_MIXER = "megatron.core.ssm.mamba_mixer:MambaMixer"
_HYBRID = "megatron.bridge.models.hybrid.hybrid_provider:HybridModelProvider"
_NEMOTRON = "megatron.bridge.models.nemotronh.nemotron_h_bridge:NemotronHBridge"
_FALCON = "megatron.bridge.models.falcon_h1.modeling_falconh1.falconh1_layer:FalconH1Layer"
_UTILS = "megatron.core.transformer.utils"
_EMBEDDING, _ITS_OTHER_NAME = "backbone.embeddings.weight", "backbone.embedding.weight"


def leave_out_what_is_not_loaded(provider: Any) -> None:
    """Of models by a pattern of layers: layers of multi-token prediction, and experts where no layer has some."""
    pattern = getattr(provider, "hybrid_layer_pattern", None)
    if pattern is None:
        return
    provider.mtp_hybrid_override_pattern = None
    if "E" not in pattern:
        provider.num_moe_experts = None


def give_gated_norms_their_epsilon(provider: Any) -> None:
    """The model's own, to the norms within Mamba 2 layers."""
    if hasattr(provider, "mamba_num_heads"):
        provider.register_pre_wrap_hook(partial(_give_epsilon, provider))


def _give_epsilon(provider: Any, chunks: list[Any]) -> list[Any]:
    norm = upstream("megatron.core.ssm.mamba_mixer:ExtendedRMSNorm")
    for module in (module for chunk in chunks for module in chunk.modules()):
        if isinstance(norm, type) and isinstance(module, norm):
            module.eps = provider.layernorm_epsilon
    return chunks


def find_embeddings_by_either_name() -> None:
    """Of Nemotron-H: as its makers write it, and as transformers does when it saves one."""
    if _NEMOTRON.partition(":")[0] not in sys.modules:  # of another family
        return
    cls = upstream(_NEMOTRON)
    if hasattr(cls, "_raymb_registry"):
        return
    cls._raymb_registry = cls.mapping_registry

    def mapping_registry(self: Any) -> Any:
        registry = self._raymb_registry()
        source = getattr(getattr(getattr(self, "hf_pretrained", None), "state", None), "source", None)
        if source is not None and _ITS_OTHER_NAME in source.get_all_keys():
            for mapping in registry.mappings:
                if mapping.hf_param == _EMBEDDING:
                    mapping.hf_param = _ITS_OTHER_NAME
        return registry

    cls.mapping_registry = mapping_registry


def save_norms_of_falcon_once() -> None:
    """With the rank among tensor parallel workers, as Megatron-Core says it does for a caller that gives no group."""
    if _FALCON.partition(":")[0] not in sys.modules:  # of another family
        return
    module: Any = upstream(_UTILS)
    if hasattr(module, "_raymb_shards"):
        return
    module._raymb_shards = make = module.make_sharded_tensors_for_checkpoint

    def make_sharded_tensors_for_checkpoint(*args: Any, tp_group: Any = None, **settings: Any) -> Any:
        return make(*args, tp_group=module.get_tensor_model_parallel_group_if_none(tp_group), **settings)

    module.make_sharded_tensors_for_checkpoint = make_sharded_tensors_for_checkpoint


def _builds_layers_of_prediction() -> bool:
    return "max(1, self.mtp_num_layers or 0)" in text_of(f"{_HYBRID}.finalize")


def _norms_have_a_constant() -> bool:
    return "eps=1e-5, group_size=" in text_of(f"{_MIXER}.__init__")


def _saves_norms_twice() -> bool:
    gives_none = "sharded_offsets, metadata)" in text_of(f"{_FALCON}.sharded_state_dict")
    return gives_none and "if tp_group is None and dp_cp_group is None:" in text_of(
        f"{_UTILS}:make_sharded_tensors_for_checkpoint"
    )


def _knows_one_name() -> bool:
    text = text_of(f"{_NEMOTRON}.mapping_registry")
    return _EMBEDDING in text and _ITS_OTHER_NAME not in text


PATCHES = (
    Patch(
        "layers of multi-token prediction by a pattern",
        "megatron-bridge",
        "0.6.2",
        f"{_HYBRID}.finalize",
        "a pattern of such layers makes one of them whatever mtp_num_layers says, and experts are counted on where no "
        "layer of the pattern has some",
        _builds_layers_of_prediction,
        leave_out_what_is_not_loaded,
    ),
    Patch(
        "epsilon of norms within Mamba 2 layers",
        "megatron-core",
        "0.19.2",
        f"{_MIXER}.__init__",
        "the norm with a gate takes an epsilon of 1e-5 whatever the model says",
        _norms_have_a_constant,
        give_gated_norms_their_epsilon,
    ),
    Patch(
        "checkpoints of Falcon-H1's norms",
        "megatron-bridge",
        "0.6.2",
        f"{_FALCON}.sharded_state_dict",
        "says nothing of tensor parallel workers, and Megatron-Core then takes each for the first: a checkpoint "
        "would have its norms twice, and is refused",
        _saves_norms_twice,
        save_norms_of_falcon_once,
    ),
    Patch(
        "name of Nemotron-H's embeddings",
        "megatron-bridge",
        "0.6.2",
        f"{_NEMOTRON}.mapping_registry",
        "transformers 5.12.1 saves the embeddings of Nemotron-H by another name than its makers, which Bridge does not "
        "find: training stops before it starts",
        _knows_one_name,
        find_embeddings_by_either_name,
    ),
)

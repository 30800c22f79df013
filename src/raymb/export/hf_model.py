"""A model as transformers has it."""

from __future__ import annotations

import math
from typing import Any

from raymb.model.families import family_of
from raymb.model.positions import complete_rotary


def load_hf_model(path: str, *, trust_remote_code: bool = False, **settings: Any) -> Any:
    """A causal language model, or a vision-language model with all its parts.

    Args:
        path: directory or hub id.
        settings: of transformers' from_pretrained.

    Raises:
        OSError, ValueError, KeyError: transformers', of a model that cannot be loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    vision = any(family_of(architecture).vision for architecture in config.architectures or ())
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        # Gemma 2 caps what the softmax gets, which transformers 5.12.1's sdpa, its default, leaves out without a word.
        settings["attn_implementation"] = "eager"
    auto: Any = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    if config.model_type == "minimax_m2":
        complete_rotary(config)
        settings["config"] = config
    loaded = auto.from_pretrained(path, trust_remote_code=trust_remote_code, **settings)
    model = loaded[0] if settings.get("output_loading_info") else loaded
    if config.model_type == "deepseek_v2":
        _scale_scores_of_yarn(model, config.rope_parameters)
    if config.model_type == "nemotron_h":
        _keep_short_time_steps(model)
    return loaded


def _keep_short_time_steps(model: Any) -> None:
    """transformers 5.12.1 makes Nemotron-H's time steps longer where they are shorter than those that it was made with,
    but only where it has no CUDA kernels, and not with Falcon-H1."""
    for module in model.modules():
        if type(module).__name__ == "NemotronHMamba2Mixer":
            module.time_step_min = module.time_step_limit[0]


def _scale_scores_of_yarn(model: Any, rope: dict[str, Any]) -> None:
    """DeepSeek's attention scores are multiplied by yarn's factor squared. Megatron-Core and transformers' DeepSeek-V3
    do so; transformers 5.12.1's DeepSeek-V2 does not."""
    factor = rope.get("factor") or 1.0
    if rope["rope_type"] != "yarn" or not rope.get("mscale_all_dim") or factor <= 1:
        return
    for module in model.modules():
        if type(module).__name__ == "DeepseekV2Attention":
            module.scaling *= (0.1 * rope["mscale_all_dim"] * math.log(factor) + 1.0) ** 2

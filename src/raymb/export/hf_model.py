"""A model as transformers has it."""

from __future__ import annotations

from typing import Any

from raymb.model.families import family_of


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
    return auto.from_pretrained(path, trust_remote_code=trust_remote_code, **settings)

"""`python read_model.py SETTINGS OUT DIRECTORY ...`: what the installed transformers makes of model directories, a JSON
line each: configuration, token ids, a rendered chat, generation settings, and (in OUT) logits in fp32. It runs in
transformers 4 and 5. SETTINGS: {"logits": false} leaves the weights alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

TEXT = "alpha beta\n  Gamma, 1234 delta's  <|endoftext|> \u00e9\u4e2d <|im_end|>\n\nif x == 1:\n\treturn"
CHAT = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}]
IS_4 = transformers.__version__.startswith("4.")


def read(directory: Path, out: Path, logits: bool = True) -> dict[str, Any]:
    answer: dict[str, Any] = {"name": directory.name, "version": transformers.__version__}
    tokenizer = AutoTokenizer.from_pretrained(directory)
    answer["ids"] = tokenizer(TEXT)["input_ids"]
    answer["decoded"] = [tokenizer.decode(answer["ids"], skip_special_tokens=skip) for skip in (True, False)]
    names = ("bos_token", "eos_token", "pad_token")  # transformers 5 gives some families an unk_token
    answer["special"] = [(getattr(tokenizer, name), getattr(tokenizer, f"{name}_id")) for name in names]
    answer["chat"] = tokenizer.apply_chat_template(CHAT, tokenize=False) if tokenizer.chat_template else None
    if (directory / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(directory)
        answer["generation"] = [generation.eos_token_id, generation.pad_token_id, generation.bos_token_id]
    if (directory / "config.json").exists():
        config = AutoConfig.from_pretrained(directory)
        answer["config"] = as_dict(config)
        if logits:
            answer["logits"] = str(out / f"{directory.name}-{transformers.__version__}.pt")
            torch.save(logits_of(directory, config), answer["logits"])
    return answer


def as_dict(config: Any) -> dict[str, Any]:
    """With the rotary embedding in one form, that of transformers 5, and with the number of experts."""
    values = json.loads(json.dumps(config.to_dict(), default=str))
    for name, part in vars(config).items():
        if hasattr(part, "to_dict"):
            values[name] = as_dict(part)
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if hasattr(config, name):
            values[name] = getattr(config, name)
    if IS_4 and hasattr(config, "rope_theta"):
        values["rope_parameters"] = rope_of_4(config)
    values.pop("rope_scaling", None)
    return values


def rope_of_4(config: Any) -> dict[str, Any]:
    whole = {"rope_type": "default", "rope_theta": config.rope_theta, **(getattr(config, "rope_scaling", None) or {})}
    whole.pop("type", None)
    if getattr(config, "partial_rotary_factor", None) is not None:
        whole["partial_rotary_factor"] = config.partial_rotary_factor
    if not hasattr(config, "rope_local_base_freq"):
        return whole
    local = {"rope_type": "default", "rope_theta": config.rope_local_base_freq}
    return {"full_attention": whole, "sliding_attention": local}


def logits_of(directory: Path, config: Any) -> torch.Tensor:
    """Of 2 x 48 random tokens."""
    vision = hasattr(config, "vision_config")
    auto: Any = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model, info = auto.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    tokens = torch.randint(1, 255, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def main() -> None:
    settings, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    for directory in sys.argv[3:]:
        print(json.dumps(read(Path(directory), out, **settings)), flush=True)


main()

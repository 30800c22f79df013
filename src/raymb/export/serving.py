"""What vLLM takes of an export, and the command line that serves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

VLLM, VLLM_TORCH = "0.26.0", "2.11.0"
"""The vLLM that asks for the torch of requirements/cpu.txt, and that torch. Each vLLM asks for exactly one, so that
another version replaces raymb's."""
INSTALL_VLLM = f"pip install vllm=={VLLM}"
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes as max_lora_rank (MaxLoRARanks in its config/lora.py)."""


def adapter_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM 0.26 does not have (PEFTHelper in its lora/peft_helper.py). It scales as use_rslora says.

    Args:
        config: adapter_config.json.
    """
    if config.get("use_dora"):
        yield "vLLM has no DoRA (use_dora in adapter_config.json)"
    if modules := config.get("modules_to_save"):
        yield f"vLLM has no modules_to_save ({', '.join(modules)} in adapter_config.json)"
    if config.get("bias", "none") != "none":
        yield f"vLLM has no biases of adapters (bias {config['bias']} in adapter_config.json)"
    if config.get("r", 0) > MAX_LORA_RANKS[-1]:
        yield f"vLLM takes adapters up to rank {MAX_LORA_RANKS[-1]}, and this one has {config['r']}"


def max_lora_rank(rank: int) -> int:
    """The smallest that vLLM takes and that an adapter of this rank fits into."""
    return next(one for one in MAX_LORA_RANKS if one >= rank)


def serve_command(directory: str, base: str = "", revision: str | None = None, rank: int = 0) -> str:
    """
    Args:
        directory: the model, or with a base the adapter.
        base: the model that the adapter belongs to.
        revision: the base's commit on the hub.
        rank: the adapter's.
    """
    if not base:
        return f"vllm serve {directory}"
    commit = f" --revision {revision}" if revision else ""
    adapter = f"--enable-lora --max-lora-rank {max_lora_rank(rank)} --lora-modules tuned={directory}"
    return f"vllm serve {base}{commit} {adapter}"

"""transformers or vLLM: what --engine asks for, what is here, and what vLLM can do with an adapter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from raymb.errors import SpecError
from raymb.inference.tuned_model import TunedModel
from raymb.run.directory import read_object

MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes as max_lora_rank (MaxLoRARanks in its config/lora.py)."""


def chosen_engine(kind: str, model: TunedModel, console: Console) -> str:
    """transformers or vllm; says why where auto takes transformers although vLLM is here.

    Args:
        kind: transformers, vllm, or auto.

    Raises:
        SpecError: vLLM is asked for, and is not here or cannot do with the model.
    """
    installed = importlib.util.find_spec("vllm") is not None
    chosen, why = choice(kind, list(vllm_problems(model)), installed, kind == "auto" and installed and _has_gpu())
    if why:
        console.print(why, highlight=False, soft_wrap=True)
    return chosen


def choice(kind: str, problems: list[str], installed: bool, on_gpu: bool) -> tuple[str, str]:
    """(transformers or vllm, why it is not what one would expect).

    Args:
        problems: what vLLM cannot do with the model, a sentence each.
        installed: whether vLLM is.
        on_gpu: whether there is a GPU, for auto.

    Raises:
        SpecError: vLLM is asked for, and is not here or cannot do with the model.
    """
    if kind == "vllm" and problems:
        raise SpecError(
            f"--engine vllm: {'; '.join(problems)}",
            "ways out: --engine transformers, or merge the adapter (raymb export RUN --merge) and generate with that",
        )
    if kind == "vllm" and not installed:
        raise SpecError("--engine vllm: vLLM is not installed", "pip install vllm, or leave --engine out")
    if kind != "auto":
        return kind, ""
    if not (installed and on_gpu):
        return "transformers", ""
    return ("transformers", f"transformers generates, not vLLM: {'; '.join(problems)}") if problems else ("vllm", "")


def vllm_problems(model: TunedModel) -> Iterator[str]:
    """Why vLLM cannot generate with an adapter."""
    return adapter_problems(adapter_config(model)) if model.adapter else iter(())


def adapter_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """What vLLM 0.26 does not have (PEFTHelper in its lora/peft_helper.py). It scales as use_rslora says.

    Args:
        config: adapter_config.json.
    """
    if config.get("use_dora"):
        yield "vLLM has no DoRA (use_dora in adapter_config.json)"
    if modules := config.get("modules_to_save"):
        yield f"vLLM has no modules_to_save ({', '.join(modules)} in adapter_config.json)"
    if config.get("r", 0) > MAX_LORA_RANKS[-1]:
        yield f"vLLM takes adapters up to rank {MAX_LORA_RANKS[-1]}, and this one has {config['r']}"


def max_lora_rank(rank: int) -> int:
    """The smallest that vLLM takes and that an adapter of this rank fits into."""
    return next(one for one in MAX_LORA_RANKS if one >= rank)


def adapter_config(model: TunedModel) -> dict[str, Any]:
    return read_object(Path(model.path) / "adapter_config.json") or {}


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()

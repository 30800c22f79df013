"""How many GPUs a model is loaded onto: --num_gpus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymb.errors import SpecError
from raymb.model.directory import bin_files
from raymb.model.tensor_files import weight_files
from raymb.run.directory import read_object

_FOR_WEIGHTS = 0.7
"""Of a GPU's memory; the rest is for activations and the cache of keys and values."""


def asked_gpus(text: str) -> int | None:
    """None for auto.

    Raises:
        SpecError: neither auto nor a number above 0.
    """
    if text == "auto":
        return None
    if not text.isdecimal() or not int(text):
        raise SpecError(f"--num_gpus {text}: auto or a number above 0 is expected")
    return int(text)


def gpus_for(asked: int | None, free: Sequence[int], weights: int, config: Mapping[str, Any] | None) -> int:
    """
    Args:
        asked: None takes the fewest whose memory holds the weights, and all if none does.
        free: bytes of each GPU that is here.
        weights: bytes of the model.
        config: config.json of a model that vLLM splits; None for transformers, which puts whole layers on each.

    Raises:
        SpecError: there are not so many, or the model cannot be split so.
    """
    here = len(free)
    can = [count for count in range(1, here + 1) if not config or not _problem(config, count)]
    if asked is None:
        fitting = (count for count in can if weights <= _FOR_WEIGHTS * sum(free[:count]))
        return next(fitting, can[-1] if can else 0)
    if asked > here:
        raise SpecError(
            f"--num_gpus {asked}: {here} GPU{'' if here == 1 else 's'} can be used here",
            f"give at most {here}, or leave it out" if here else "leave it out",
        )
    if config and (problem := _problem(config, asked)):
        raise SpecError(
            f"--num_gpus {asked}: vLLM splits every layer over the GPUs, and {problem}",
            f"give {' or '.join(map(str, can))}, or --engine transformers, which puts whole layers on each",
        )
    return asked


def _problem(config: Mapping[str, Any], count: int) -> str:
    """Why vLLM does not split a model over so many GPUs (verify_with_parallel_config in its config/model.py, and
    QKVParallelLinear and `divide` in its layers); "" where it does."""
    text = next((config[name] for name in ("text_config", "llm_config") if isinstance(config.get(name), dict)), config)
    heads, width = text.get("num_attention_heads"), text.get("intermediate_size")
    groups = text.get("num_key_value_heads") or heads
    if heads and heads % count:
        return f"{heads} attention heads are no multiple of {count}"
    if groups and groups % count and count % groups:
        return f"{groups} key and value heads are neither a multiple nor a divisor of {count}"
    if isinstance(width, int) and width % count:
        return f"the intermediate size of {width:,} is no multiple of {count}"
    return ""


def model_bytes(directory: str) -> int:
    """Of its weights."""
    path = Path(directory)
    return sum(file.stat().st_size for file in weight_files(path) or bin_files(path))


def config_of(directory: str) -> dict[str, Any]:
    return read_object(Path(directory) / "config.json") or {}


def free_memory() -> list[int]:
    """Bytes of each GPU here."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]

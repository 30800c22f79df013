"""transformers or vLLM, and on how many GPUs: what --engine and --num_gpus ask for, what is here, and what vLLM can do
with an adapter."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import Version
from rich.console import Console

from raymb.errors import SpecError
from raymb.export.serving import INSTALL_VLLM, VLLM, VLLM_TORCH, adapter_problems
from raymb.inference.engine import TUNED, EngineSettings, weights_of
from raymb.inference.gpus import config_of, free_memory, gpus_for, model_bytes
from raymb.inference.tuned_model import TunedModel
from raymb.run.directory import read_object


def chosen_engine(
    kind: str, model: TunedModel, console: Console, num_gpus: int | None = None, batch_size: int = 8
) -> EngineSettings:
    """What generates; says why where auto takes transformers although vLLM is here.

    Args:
        kind: transformers, vllm, or auto.
        num_gpus: None chooses.

    Raises:
        SpecError: vLLM is asked for, and is not here or cannot do with the model; or there are not so many GPUs.
    """
    free = free_memory()
    chosen, why = choice(kind, list(vllm_problems(model)), installed_vllm(), bool(free))
    if why:
        console.print(why, highlight=False, soft_wrap=True)
    if len(free) < 2 and num_gpus is None:
        return EngineSettings(chosen, len(free), batch_size)
    gpus_for(num_gpus, free, 0, None)  # before a model of a hub is fetched to look at it
    files = weights_of(model, TUNED)
    config = config_of(files) if chosen == "vllm" else None
    return EngineSettings(chosen, gpus_for(num_gpus, free, model_bytes(files), config), batch_size)


def choice(kind: str, problems: list[str], installed: str | None, on_gpu: bool) -> tuple[str, str]:
    """(transformers or vllm, why it is not what one would expect).

    Args:
        problems: what vLLM cannot do with the model, a sentence each.
        installed: vLLM's version; None where it is not.
        on_gpu: whether there is a GPU, for auto.

    Raises:
        SpecError: vLLM is asked for, and is not here or cannot do with the model.
    """
    other = installed is not None and Version(installed).base_version != VLLM
    wrong = f"vLLM {installed} is installed, and vLLM {VLLM} is the one for raymb's torch {VLLM_TORCH}"
    if kind == "vllm" and problems:
        raise SpecError(
            f"--engine vllm: {'; '.join(problems)}",
            "ways out: --engine transformers, or merge the adapter (raymb export RUN --merge) and generate with that",
        )
    if kind == "vllm" and (installed is None or other):
        raise SpecError(
            f"--engine vllm: {wrong if other else 'vLLM is not installed'}",
            f"{INSTALL_VLLM} (another version replaces torch {VLLM_TORCH}), or leave --engine out",
        )
    if kind != "auto":
        return kind, ""
    if installed is None or not on_gpu:
        return "transformers", ""
    reasons = [f"{wrong} ({INSTALL_VLLM})"] if other else problems
    return ("transformers", f"transformers generates, not vLLM: {'; '.join(reasons)}") if reasons else ("vllm", "")


def installed_vllm() -> str | None:
    """Its version; a folder named vllm beside the program is none."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return None


def vllm_problems(model: TunedModel) -> Iterator[str]:
    """Why vLLM cannot generate with an adapter."""
    return adapter_problems(adapter_config(model)) if model.adapter else iter(())


def adapter_config(model: TunedModel) -> dict[str, Any]:
    return read_object(Path(model.path) / "adapter_config.json") or {}

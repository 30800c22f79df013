"""The trained adapters to a directory that Hugging Face's PEFT loads."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.models.conversion.peft_bridge import (
    build_adapter_config_dict,
    convert_adapter_weights_to_peft_state,
    infer_target_modules_from_adapter_weights,
)
from megatron.core.utils import unwrap_model

from raymb.bridge.adapters import Adapters, adapters_in
from raymb.bridge.collectives import some_rank
from raymb.model.families import family_of
from raymb.model.families.record import VisionLanguage
from raymb.model.tensor_files import trimmed
from raymb.model.vision import module_name
from raymb.plan import adapters as planned
from raymb.run.job import Job

_PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(hf_bridge: AutoBridge, model: list[Any], adapters: Adapters, job: Job, target: Path) -> None:
    """Write adapter_model.safetensors and adapter_config.json; collective.

    Args:
        model: this rank's model chunks.
        target: a directory that exists.
    """
    weights, saved = _exported(hf_bridge, model), _saved(hf_bridge, model, adapters, job)
    with _magnitudes_as_weights(model) as any_magnitude:
        magnitudes = _exported(hf_bridge, model) if any_magnitude else []
    if dist.get_rank() != 0:
        return
    from safetensors.torch import save_file

    state, modules, parameters = convert_adapter_weights_to_peft_state(weights)
    for magnitude in magnitudes:
        name = magnitude.param_name
        if name.endswith(".lora_B.weight"):
            key = f"{_PREFIX}{name.removesuffix('.lora_B.weight')}.lora_magnitude_vector"
            state[key] = magnitude.weight[:, 0].contiguous()
    config = build_adapter_config_dict(adapters, infer_target_modules_from_adapter_weights(modules), parameters)
    whole = float(adapters.alpha).is_integer()  # for PEFT, which has whole numbers there, too
    config["lora_alpha"] = int(adapters.alpha) if whole else adapters.alpha
    config |= {"base_model_name_or_path": job.base_name, "revision": job.base_revision}
    config |= {"use_dora": adapters.kind == "dora", "use_rslora": adapters.rslora}
    if vision := family_of(job.architecture).vision:
        config["target_modules"] = _only_language(vision, infer_target_modules_from_adapter_weights(modules))
        names = {name: _PREFIX + module_name(job.architecture, name.removeprefix(_PREFIX)) for name in state}
        state = {names[name]: one for name, one in state.items()}
    if saved:
        tied = unwrap_model(model)[0].share_embeddings_and_output_weights
        config |= {"modules_to_save": _modules(saved), **({"ensure_weight_tying": True} if tied else {})}
        state |= {f"{_PREFIX}{name}": tensor for name, tensor in saved.items()}
        if tied:  # as PEFT writes it
            state[f"{_PREFIX}{planned.OUTPUT}.weight"] = next(iter(saved.values()))
    # Tensors of fused matrices share memory, which safetensors refuses.
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _only_language(vision: VisionLanguage, modules: list[str]) -> str:
    """A pattern: the vision part has modules of the same names."""
    begin = vision.language[1]
    return f"{re.escape(begin)}.*\\.({'|'.join(sorted({module.rpartition('.')[2] for module in modules}))})"


def _modules(saved: Iterable[str]) -> list[str]:
    return [name.removesuffix(".weight").rpartition(".")[2] for name in saved]


def _saved(hf_bridge: AutoBridge, model: list[Any], adapters: Adapters, job: Job) -> dict[str, torch.Tensor]:
    """Hugging Face's name to whole tensor of each parameter of the model that is trained. Collective."""
    registry: Any = hf_bridge._model_bridge.mapping_registry()
    found: dict[str, torch.Tensor] = {}
    here = {name: chunk for chunk in unwrap_model(model) for name, _ in chunk.named_parameters()}
    for name in adapters.saved:
        module = here[name].get_submodule(name.rpartition(".")[0]) if name in here else None
        found |= registry.megatron_to_hf_lookup(name).megatron_to_hf(module and module.weight, module)
    return {
        name: trimmed(name, tensor.detach().cpu(), job.plan.padded_vocab_size, job.vocab_size)
        for name, tensor in found.items()
    }


def _exported(hf_bridge: AutoBridge, model: list[Any]) -> list[Any]:
    """(Hugging Face's name, whole tensor) of every adapter matrix."""
    return list(hf_bridge.export_adapter_weights(model, cpu=True, show_progress=False))


@contextlib.contextmanager
def _magnitudes_as_weights(model: list[Any]) -> Iterator[bool]:
    """DoRA's magnitudes in the place of the second matrices: Bridge 0.6.2 exports no magnitudes, and they are split
    and gathered just as the rows of those. Yields whether there are any."""
    found = [adapter for _, adapter in adapters_in(model) if hasattr(adapter, "weight_magnitude")]
    kept = [(adapter.linear_out, adapter.linear_out.weight) for adapter in found]
    for adapter in found:
        magnitude, rows = adapter.weight_magnitude.detach(), len(adapter.linear_out.weight)
        if adapter.input_is_parallel:
            magnitude = magnitude.narrow(0, dist.get_rank(adapter.tp_group) * rows, rows)
        adapter.linear_out.weight = torch.nn.Parameter(magnitude[:, None].clone(), requires_grad=False)
    try:
        yield some_rank(bool(found))
    finally:
        for linear, weight in kept:
            linear.weight = weight

"""The weights of a checkpoint as a model in the job's layout, whatever layout they were written with."""

from __future__ import annotations

import gc
from typing import Any

import torch
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.training.checkpointing import (
    _generate_model_state_dict,
    apply_peft_adapter_filter_to_state_dict,
    delete_extra_state,
    get_pg_collection,
)
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy
from megatron.core.utils import unwrap_model
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from raymb.bridge.adapters import Adapters, make_adapters
from raymb.bridge.config import build_config
from raymb.errors import RunFailed
from raymb.run.job import Job

_LARGE = 1 << 27
"""Bytes."""
_OF_FSDP = "model.module."
"""What the names of weights begin with in a checkpoint of Megatron-FSDP."""


def load_model(job: Job) -> tuple[AutoBridge, list[Any]]:
    """The bridge to the Hugging Face model, and the model with the weights of the job's load_dir.

    Args:
        job: for which Megatron is ready (raymb.bridge.activation); with load_dir "" the model is as Hugging Face has
            it.
    """
    config, hf_bridge = build_config(job, job.load_dir or None)
    adapters = make_adapters(job)
    provider: Any = config.model
    provider.perform_initialization = False
    provider.finalize()
    if not parallel_state.model_parallel_is_initialized():
        provider.initialize_model_parallel(seed=job.spec.train.seed)
    model = provider.provide_distributed_model(wrap_with_ddp=False, bf16=provider.bf16, fp16=False)
    if adapters is not None:
        hf_bridge.load_hf_weights(model)
        model = adapters(model, training=False)
        adapters.set_params_to_save(unwrap_model(model))
    if job.load_dir and dist_checkpointing.check_is_distributed_checkpoint(job.load_dir):
        _load_weights(job.load_dir, unwrap_model(model), adapters)
    elif job.load_dir:
        _load_whole_tensors(job.load_dir, unwrap_model(model)[0])
    for chunk in model:
        chunk.eval()
    return hf_bridge, model


def _load_weights(directory: str, model: list[Any], adapters: Adapters | None) -> None:
    """The weights of all, or of the adapters alone, which is what a checkpoint of theirs has."""
    metadata = dist_checkpointing.load_content_metadata(
        preloaded_state_dict=dist_checkpointing.load_common_state_dict(directory)
    )
    wanted = _generate_model_state_dict(model, {"metadata": metadata}, pg_collection=get_pg_collection(model))
    if adapters is not None:
        wanted = apply_peft_adapter_filter_to_state_dict(wanted, adapters)
    names = ["model"] if len(model) == 1 else [f"model{index}" for index in range(len(model))]
    missing = [set(chunk.state_dict()) for chunk in model]
    for part in _in_parts({name: wanted[name] for name in names}):
        state: Any = dist_checkpointing.load(
            part, directory, TorchDistLoadShardedStrategy(), strict="assume_ok_unexpected"
        )
        delete_extra_state(state)
        for index, (chunk, name) in enumerate(zip(model, names, strict=True)):
            outcome = chunk.load_state_dict(state.pop(name, {}), strict=False)
            missing[index] &= set(outcome.missing_keys)
            assert not outcome.unexpected_keys, outcome.unexpected_keys
        del state
        gc.collect()
    lacking = [name for name in set().union(*missing) if _is_needed(name, adapters)]
    if lacking:
        raise RunFailed(f"{directory} has no {', '.join(sorted(lacking)[:3])} ({len(lacking)} tensors are missing)")


def _load_whole_tensors(directory: str, model: Any) -> None:
    """The weights that Megatron-FSDP has written, into a model that is in one process."""
    reader = FileSystemReader(directory)
    stored = {
        name.removeprefix(_OF_FSDP): entry.size
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(_OF_FSDP) and isinstance(entry, TensorStorageMetadata)
    }
    into: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        if isinstance(weight, torch.Tensor) and "_extra_state" not in name:
            halves = (f"{name}_w", f"{name}_v")  # gate and up
            parts = zip(halves, weight.chunk(2), strict=True) if halves[0] in stored else [(name, weight)]
            into |= {name: part for name, part in parts}
    if lacking := sorted(set(into) - set(stored)):
        raise RunFailed(f"{directory} has no {', '.join(lacking[:3])} ({len(lacking)} tensors are missing)")
    # A vocabulary that was padded for tensor parallel has more rows there.
    longer = {
        name: torch.empty(stored[name], dtype=part.dtype) for name, part in into.items() if stored[name] != part.shape
    }
    load(
        {f"{_OF_FSDP}{name}": longer.get(name, part) for name, part in into.items()},
        storage_reader=reader,
        no_dist=True,
    )
    for name, rows in longer.items():
        into[name].copy_(rows[: len(into[name])])


def _is_needed(name: str, adapters: Adapters | None) -> bool:
    """Whether a checkpoint must have this entry of a model."""
    return "_extra_state" not in name and (adapters is None or adapters.adapter_key_filter(name))


def _in_parts(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The same in three parts, to hold little besides the model. First what Megatron joins out of pieces (gate and up),
    which is there three times meanwhile; then what is large, because torch's reader holds a tensor four times."""

    def part_of(entry: Any) -> int:
        data = getattr(entry, "data", None)
        large = isinstance(data, torch.Tensor) and data.numel() * data.element_size() >= _LARGE
        return 0 if isinstance(entry, ShardedTensorFactory) else 1 if large else 2

    return [
        {name: {key: entry for key, entry in of.items() if part_of(entry) == part} for name, of in wanted.items()}
        for part in range(3)
    ]

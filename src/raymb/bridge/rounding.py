"""A trained model with its weights as an export writes them: in types of fewer bits than they were trained in."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.bridge.models.conversion.auto_bridge import AutoBridge

from raymb.bridge.collectives import some_rank
from raymb.model.tensor_files import tensor_types, type_to_write
from raymb.run.job import Job


@contextlib.contextmanager
def as_written(hf_bridge: AutoBridge, model: list[Any], job: Job) -> Iterator[bool]:
    """Round the weights to the types of their tensors in the files, and put them back afterwards; the host keeps them
    meanwhile. Collective. Yields whether any weight of any rank changes."""
    types = _types(hf_bridge, model, job)
    usual = Counter(types.values()).most_common(1)[0][0] if types else torch.float32
    kept = []
    with torch.no_grad():
        for parameter in (parameter for chunk in model for parameter in chunk.parameters()):
            # A copy that Megatron ties to another stage's embedding has no name of its own in the files.
            rounded = parameter.to(types.get(parameter.data_ptr(), usual)).to(parameter.dtype)
            if not torch.equal(rounded, parameter):
                kept.append((parameter, parameter.detach().to("cpu", copy=True)))
                parameter.copy_(rounded)
        try:
            yield some_rank(bool(kept))
        finally:
            for parameter, was in kept:
                parameter.copy_(was)


def _types(hf_bridge: AutoBridge, model: list[Any], job: Job) -> dict[int, torch.dtype]:
    """By the address of this rank's weights."""
    asked, stored = job.spec.checkpoint.export_dtype, tensor_types(Path(job.model_path))
    found = {}
    for task in hf_bridge.get_conversion_tasks(model):
        if task is not None and task.param_weight is not None:
            names = task.mapping.hf_param
            name = names if isinstance(names, str) else next(iter(names.values()))
            found[task.param_weight.data_ptr()] = getattr(torch, type_to_write(asked, stored.get(name)))
    return found

"""The CUDA-only packages on a machine without CUDA.

- Transformer Engine, flash-linear-attention, mamba-ssm and causal-conv1d are the stand-ins under cpu/packages, which
  compute. transformers does without them, as on any machine without CUDA.
- nvidia_resiliency_ext is hidden while Megatron-Core is imported, which asks for it, and a name only when Bridge 0.6.2
  imports nvidia_resiliency_ext.inprocess (training/pretrain) without asking.
- TorchDynamo is disabled on the CPU: importing it would only take time.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from raymb.cpu import stand_in

_PACKAGES = Path(__file__).parent / "packages"
_COMPILER = ("torch._dynamo", "torch.distributed.tensor", "torch.distributed._tensor")


def install(distributed_tensors: bool = False) -> None:
    """
    Args:
        distributed_tensors: whether torch's DTensors are used.
    """
    if not distributed_tensors:
        _leave_out_compiler()
    sys.path.insert(0, str(_PACKAGES))
    _keep_transformers_from_kernels()
    stand_in.hide("nvidia_resiliency_ext")
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # noqa: F401

    _use_cpu_generator()
    stand_in.show("nvidia_resiliency_ext")
    stand_in.provide("nvidia_resiliency_ext")


def _leave_out_compiler() -> None:
    """TorchDynamo is disabled on the CPU and no tensor is a DTensor, but importing them (and sympy for them) costs a
    worker 4 CPU seconds. torch and transformers ask dynamo for one kind of thing: to treat a function in its own way.
    """
    if any(name in sys.modules for name in _COMPILER):
        return
    stand_in.provide(*_COMPILER)
    dynamo = importlib.import_module("torch._dynamo")
    for decorator in ("disable", "allow_in_graph", "disallow_in_graph", "assume_constant_result"):
        setattr(dynamo, decorator, _leave_alone)
    dynamo.graph_break = lambda *args, **kwargs: None  # type: ignore[attr-defined]
    dynamo.is_compiling = lambda: False  # type: ignore[attr-defined]


def _leave_alone(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    """torch._dynamo.disable and the like, as a call or as a decorator with arguments."""
    return function if function is not None else _leave_alone


def _keep_transformers_from_kernels() -> None:
    """It asks torch.cuda, which has a face here, whether its models can have CUDA kernels, and imports more of their
    packages than training calls."""
    from transformers.utils import import_utils

    import_utils.is_torch_cuda_available = lambda: False


def _use_cpu_generator() -> None:
    """Megatron's RNG tracker forks the CUDA generator's state; here that is the CPU generator's."""
    import torch
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.default_generator.get_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.default_generator.set_state(state)

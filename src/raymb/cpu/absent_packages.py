"""The CUDA-only packages, absent.

Megatron-Core is imported first, with Transformer Engine hidden, so that it takes its local (plain torch) paths;
only then do the names exist that Bridge 0.6.2 imports unconditionally: transformer_engine.pytorch (peft/lora_layers)
and nvidia_resiliency_ext.inprocess (training/pretrain).
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from raymb import stand_in

_CUDA_ONLY = ("transformer_engine", "nvidia_resiliency_ext")
_COMPILER = ("torch._dynamo", "torch.distributed.tensor", "torch.distributed._tensor")


def install() -> None:
    _leave_out_compiler()
    stand_in.hide(*_CUDA_ONLY)
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer  # noqa: F401

    _use_cpu_generator()
    stand_in.show(*_CUDA_ONLY)
    stand_in.provide(*_CUDA_ONLY)


def _leave_out_compiler() -> None:
    """TorchDynamo is disabled on the CPU and no tensor is a DTensor, but importing them (and sympy for them) costs a
    worker 4 CPU seconds. torch and transformers ask dynamo for one kind
    of thing: to treat a function in its own way."""
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


def _use_cpu_generator() -> None:
    """Megatron's RNG tracker forks the CUDA generator's state; here that is the CPU generator's."""
    import torch
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.default_generator.get_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.default_generator.set_state(state)

"""Each upstream trap that raymb steps around: what breaks without it, at which version, and a probe, so that the
fix disappears when upstream mends it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
from typing import Any

logger = logging.getLogger(__name__)


def apply_all() -> None:
    """Install the fixes that patch upstream; after Bridge is imported, before pretrain()."""
    skip_compiling_shipped_helpers()
    allow_peft_without_transformer_engine()
    allocate_torch_adam_state()
    keep_write_results_in_process()


def skip_compiling_shipped_helpers() -> None:
    """megatron-core 0.19.2: compile_helpers() runs `make` in the installed package, which has no Makefile, and calls
    sys.exit(1), although the wheel ships the compiled helpers_cpp."""
    with contextlib.suppress(ImportError):
        importlib.import_module("megatron.core.datasets.helpers_cpp")
        initialize = importlib.import_module("megatron.bridge.training.initialize")
        initialize.compile_helpers = lambda: None  # type: ignore[attr-defined]


def can_fuse_gradient_accumulation() -> bool:
    """megatron-bridge 0.6.2 turns gradient_accumulation_fusion on by default; without APEX's kernel the first forward
    pass of the output layer raises."""
    try:
        importlib.import_module("fused_weight_gradient_mlp_cuda")
    except ImportError:
        logger.info("gradient_accumulation_fusion is off: APEX (fused_weight_gradient_mlp_cuda) is not installed")
        return False
    return True


def allow_peft_without_transformer_engine() -> None:
    """megatron-bridge 0.6.2: peft/utils.py tests isinstance() with TE classes that are None when Megatron-Core was
    imported without TE."""
    layers = importlib.import_module("megatron.core.extensions.transformer_engine")
    if getattr(layers, "HAVE_TE", False):
        return
    peft_utils = importlib.import_module("megatron.bridge.peft.utils")
    if hasattr(peft_utils, "HAVE_TE"):
        peft_utils.HAVE_TE = False  # type: ignore[attr-defined]


def keep_write_results_in_process() -> None:
    """megatron-core 0.19.2: the first torch_dist save starts a multiprocessing manager by spawn, whose child imports
    the main module again (7 s on 2 cores), to carry results between functions of one process. A plain queue does.
    An asynchronous save writes in another process and puts its own queue here."""
    filesystem_async = importlib.import_module("megatron.core.dist_checkpointing.strategies.filesystem_async")
    if getattr(filesystem_async, "_results_queue", "absent") is None:
        filesystem_async._results_queue = _PlainQueue()  # type: ignore[attr-defined]


class _PlainQueue(queue.Queue):
    """With the manager that Bridge shuts down when a run fails."""

    class _manager:
        @staticmethod
        def shutdown() -> None:
            pass


def allocate_torch_adam_state() -> None:
    """megatron-core 0.19.2 with torch's AdamW (no TE, no APEX): DistributedOptimizer.state_dict() asserts on an
    optimizer that has not stepped, so a fresh process cannot load a checkpoint. Zero state gets past the assert and
    is then overwritten by the checkpoint's. `restore_torch_adam_step` is the other half."""
    distrib_optimizer = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    if distrib_optimizer.HAVE_APEX_OR_TE or hasattr(distrib_optimizer.DistributedOptimizer, "_raymb_state_dict"):
        return
    cls = distrib_optimizer.DistributedOptimizer
    cls._raymb_state_dict = cls.state_dict

    def state_dict(self: Any) -> Any:
        if self.optimizer is not None and not self.optimizer.state:
            _allocate_zero_state(self.optimizer)
        return self._raymb_state_dict()

    cls.state_dict = state_dict


def restore_torch_adam_step(optimizer: Any, step: int) -> None:
    """The per-parameter `step` that torch keeps comes back from a megatron-core 0.19.2 checkpoint as 0, so Adam's
    bias correction, and with it the losses, would differ from the uninterrupted run's.

    Args:
        optimizer: Megatron's optimizer, chained or not.
        step: optimizer steps done so far.
    """
    import torch

    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
            for state in inner.state.values():
                state["step"] = torch.tensor(float(step))  # one each: the loader shares one tensor among all


def _allocate_zero_state(optimizer: Any) -> None:
    import torch

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

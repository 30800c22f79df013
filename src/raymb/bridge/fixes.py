"""Each upstream trap that raymb steps around: what breaks without it, at which version, and a probe, so that the
fix disappears when upstream mends it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue

logger = logging.getLogger(__name__)


def apply_all() -> None:
    """Install the fixes that patch upstream; after Bridge is imported, before pretrain()."""
    skip_compiling_shipped_helpers()
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

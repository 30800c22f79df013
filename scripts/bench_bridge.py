"""`torchrun scripts/bench_bridge.py JOB.json ...`: Bridge alone, without Ray and callbacks of raymb's, job after job.

For comparison. Saves nothing; prints an object after each: its file, and the most bytes that torch's allocator held on
any rank.
"""

from __future__ import annotations

import gc
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from raymb.rank.accelerator import ACCELERATORS
from raymb.rank.progress import Progress
from raymb.run.job import Job
from raymb.worker import join_process_group, prepare


def main() -> None:
    import torch
    import torch.distributed as dist

    for file in sys.argv[1:]:
        job = Job.from_json(Path(file).read_text(encoding="utf-8"))
        accelerator = ACCELERATORS[job.backend]
        join_process_group(accelerator.distributed_backend, accelerator.device(), job.spec.resilience.nccl_timeout)
        config, _, _ = prepare(job, Progress(), lambda record: None)
        config.checkpoint.save, config.checkpoint.async_save = None, False
        torch.cuda.reset_peak_memory_stats()
        forward_step = import_module("raymb.bridge.forward").forward_step_of(job)
        import_module("megatron.bridge.training.pretrain").pretrain(config, forward_step)
        peak = import_module("raymb.bridge.collectives").largest_of_all(torch.cuda.max_memory_allocated())
        if dist.get_rank() == dist.get_world_size() - 1:  # the one that Bridge's log comes from
            print(json.dumps({"job": file, "peak": peak}), flush=True)
        del config
        _free_models()
        torch.cuda.empty_cache()


def _free_models() -> None:
    """Megatron-Core 0.19's data parallel wrapper and its gradients' hooks hold each other, some of them in C++, where
    Python's collector does not see it: a model outlives its training. Its memory need not."""
    import torch
    from megatron.core.distributed import DistributedDataParallel

    tensors: list[Any] = []
    for one in gc.get_objects():
        if isinstance(one, DistributedDataParallel):
            wrapped: Any = one
            tensors += wrapped.parameters()
            for buffer in (*wrapped.buffers, *wrapped.expert_parallel_buffers):
                tensors += buffer.param_data, buffer.grad_data
        elif isinstance(one, torch.optim.Optimizer):
            tensors += [number for group in one.param_groups for number in group["params"]]
            tensors += [value for state in one.state.values() for value in state.values()]
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            getattr(tensor, "_local_tensor", tensor).untyped_storage().resize_(0)  # Megatron-FSDP's are DTensors


if __name__ == "__main__":
    main()

"""The CPU accelerator: what lets Megatron-Bridge's own training loop run over gloo on a machine without a GPU.

`activate()` must run before anything imports megatron. It changes the process for good: a worker process, never the
driver's or a notebook's.
"""

from __future__ import annotations

import os


def activate(fsdp: bool = False) -> None:
    """Give this process torch.cuda's face over the CPU and stand-ins for the CUDA-only packages.

    Args:
        fsdp: whether Megatron-FSDP is used.
    """
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from raymb.cpu import absent_packages, flex_attention, gloo, megatron_fsdp, torch_cuda

    torch_cuda.install()
    gloo.install()
    absent_packages.install(distributed_tensors=fsdp)
    flex_attention.install()
    if fsdp:
        megatron_fsdp.install()

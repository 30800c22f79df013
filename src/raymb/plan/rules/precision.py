"""What FP8 asks of the GPU and of the sizes of a layout's matrices."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.gpus import Gpu
from raymb.plan.sizes import Layout

_MULTIPLE = {"fp8": 16, "fp8_blockwise": 16, "mxfp8": 32}
"""Of both sides of an FP8 matrix product (Transformer Engine 2.20, on cuBLAS); mxfp8: of a block, too."""


def precision_problems(precision: str, backend: str, gpu: Gpu | None, layout: Layout, shape: ModelShape) -> list[str]:
    """A sentence for everything that speaks against --precision.

    Args:
        backend: cuda or cpu; auto where it is not known yet.
        gpu: what the workers have, where somebody knows.
    """
    if precision not in _MULTIPLE:
        return []
    flag = f"--precision {precision}"
    if backend == "cpu":
        return [f"{flag} needs GPUs, and the workers are CPU workers; leave it out, or set --backend cuda"]
    if gpu is not None and precision not in gpu.fp8:
        other = f"set it to {' or '.join(gpu.fp8)} or bf16" if gpu.fp8 else "set it to bf16"
        return [f"{flag} is not possible on --gpu {gpu.name}; {other}"]
    return list(_sizes(flag, _MULTIPLE[precision], layout, shape))


def _sizes(flag: str, multiple: int, layout: Layout, shape: ModelShape) -> Iterator[str]:
    tensor = layout.tensor
    inner = (shape.moe_intermediate_size or shape.intermediate_size) if shape.num_experts else shape.intermediate_size
    split = layout.expert_tensor if shape.num_experts else tensor
    tokens = layout.micro_batch_size * layout.seq_length // layout.context
    tokens //= tensor if layout.sequence_parallel else 1
    sizes = {
        f"the hidden size {shape.hidden_size}": shape.hidden_size,
        f"the feed-forward size {inner} / {split} tensor parallel": inner // split,
        f"a worker's {tokens} tokens of a micro batch (--micro_batch_size {layout.micro_batch_size} x --seq_length "
        f"{layout.seq_length})": tokens,
    }
    for what, size in sizes.items():
        if size % multiple:
            yield f"{flag} needs multiples of {multiple}, and {what} is none; change it, or set --precision bf16"

"""What FP8 asks of the GPU and of the sizes of a layout's matrices."""

from __future__ import annotations

from collections.abc import Iterator

from raymb.model.shape import ModelShape
from raymb.plan.rules.run import Run
from raymb.plan.sizes import DetailedLayout

_MULTIPLE = {"fp8": 16, "fp8_blockwise": 16, "mxfp8": 32}
"""Of both sides of an FP8 matrix product (Transformer Engine 2.20, on cuBLAS); mxfp8: of a block, too."""


def fp8(run: Run) -> Iterator[str]:
    """--precision beside the workers, their GPUs, and the sizes of a layout's matrices."""
    precision, gpu, layout = run.spec.train.precision, run.gpu, run.layout
    if precision not in _MULTIPLE or layout is None:
        return
    flag = f"--precision {precision}"
    if run.backend == "cpu":
        yield f"{flag} needs GPUs, and the workers are CPU workers; leave it out, or set --backend cuda"
    elif gpu is not None and precision not in gpu.fp8:
        other = f"set it to {' or '.join(gpu.fp8)} or bf16" if gpu.fp8 else "set it to bf16"
        yield f"{flag} is not possible on --gpu {gpu.name}; {other}"
    else:
        yield from _sizes(flag, _MULTIPLE[precision], layout, run.shape)


def _sizes(flag: str, multiple: int, layout: DetailedLayout, shape: ModelShape) -> Iterator[str]:
    tensor = layout.tensor_parallel_size
    inner = (shape.moe_intermediate_size or shape.intermediate_size) if shape.num_experts else shape.intermediate_size
    split = layout.expert_tensor_parallel_size if shape.num_experts else tensor
    tokens = layout.micro_batch_size * layout.seq_length // layout.context_parallel_size
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

"""Every size of a layout: what rules check and estimates count on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A layout without `auto`, not checked yet. data is 0 where the workers do not divide."""

    num_workers: int
    tensor: int
    pipeline: int
    virtual: int | None
    context: int
    expert: int
    expert_tensor: int
    expert_tensor_given: bool
    data: int
    sequence_parallel: bool
    first_stage: int | None
    last_stage: int | None
    micro_batch_size: int
    global_batch_size: int
    seq_length: int
    packing: bool = False
    recompute: str = "none"
    recompute_method: str = "uniform"
    recompute_layers: int = 1
    recompute_modules: tuple[str, ...] = ()
    offloaded_layers: int = 0
    optimizer_offload: float = 0.0
    optimizer_moments: str = "fp32"
    distributed_optimizer: bool = True
    fsdp: str = "none"
    gradient_bytes: int = 4
    fused_loss: bool = True
    fused_activation: bool = True
    fp8: bool = False
    cuda_graphs: bool = False
    number_bytes: int = 2
    adapter_rank: int | None = None
    adapter_targets: tuple[str, ...] = ()

    @property
    def micro_batches(self) -> int:
        """Of one worker in one step."""
        return self.global_batch_size // (self.micro_batch_size * self.data)

    @property
    def expert_data(self) -> int:
        """Workers that hold the same experts of the same stage."""
        return self.num_workers // (self.expert_tensor * self.expert * self.pipeline)


def layers_per_stage(layout: Layout, num_layers: int) -> list[int]:
    """Transformer layers on each pipeline stage, first to last, of a layout that breaks no rule."""
    first, last = ([] if size is None else [size] for size in (layout.first_stage, layout.last_stage))
    middle = layout.pipeline - len(first + last)
    return [*first, *[(num_layers - sum(first + last)) // max(1, middle)] * middle, *last]

"""Every size of a layout: what rules check and estimates count on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Layout:
    """A layout without `auto`, not checked yet.

    data is 0 where the workers do not divide, or not into as many copies as asked_data (MIN, MAX) allows. assumed says
    what tensor, pipeline and context sizes are that were `auto`: "" there was none, "one" they are 1 for good (CPU
    workers), "open" they are 1 because the search has found nothing for them. asked_data of them then stands for all.
    """

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
    asked_data: tuple[int, int] | None = None
    assumed: Literal["", "one", "open"] = ""

    @property
    def model_parallel(self) -> int:
        """Workers that share one copy of the model."""
        return self.tensor * self.pipeline * self.context

    @property
    def copies_asked(self) -> int | None:
        """The one data parallel size that is asked for; None where there is none, or a range."""
        low, high = self.asked_data or (0, 1)
        return low if low == high else None

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


def sample_multiple(layout: Layout) -> int:
    """Context parallel workers take two pieces each of every sample; with sequence parallel a piece is split again."""
    if not layout.packing or layout.context == 1:
        return 1
    return 2 * layout.context * (layout.tensor if layout.sequence_parallel else 1)

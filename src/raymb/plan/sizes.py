"""Every size of a layout: what a plan holds, what rules check and estimates count on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How workers share a step, without `auto`; a field has the name of its flag.

    num_workers = tensor x pipeline x context x data parallel. Experts have a grid of their own over the same workers:
    num_workers = expert tensor x expert x pipeline x expert data parallel. Batches are samples, lengths are tokens.
    """

    num_workers: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    virtual_pipeline_parallel_size: int | None
    context_parallel_size: int
    expert_parallel_size: int
    expert_tensor_parallel_size: int
    data_parallel_size: int
    sequence_parallel: bool
    num_layers_in_first_stage: int | None
    num_layers_in_last_stage: int | None
    micro_batch_size: int
    global_batch_size: int
    seq_length: int
    packing: bool = False
    megatron_fsdp: str = "none"
    recompute: str = "none"
    optimizer_offload: float = 0.0
    cuda_graphs: bool = False

    @property
    def model_parallel_size(self) -> int:
        """Workers that share one copy of the model: tensor x pipeline x context parallel."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.context_parallel_size

    @property
    def expert_data_parallel_size(self) -> int:
        """Workers that hold the same experts of the same stage."""
        return self.num_workers // (
            self.expert_tensor_parallel_size * self.expert_parallel_size * self.pipeline_parallel_size
        )

    @property
    def micro_batches(self) -> int:
        """Of one worker in one step."""
        return self.global_batch_size // (self.micro_batch_size * self.data_parallel_size)

    @property
    def sample_multiple(self) -> int:
        """Tokens that each sample of a packed row is padded to a multiple of."""
        tensor = self.tensor_parallel_size if self.sequence_parallel else 1
        return pieces_of_a_sample(self.context_parallel_size, tensor) if self.packing else 1


@dataclass(frozen=True, kw_only=True)
class DetailedLayout(Layout):
    """A layout, not checked yet, with what else rules, memory and speed depend on.

    data_parallel_size is 0 where the workers do not divide, or not into as many copies as asked_data (MIN, MAX) allows.
    assumed says what tensor, pipeline and context sizes are that were `auto`: "" there was none, "one" they are 1 for
    good (CPU workers), "open" they are 1 because the search has found nothing for them. asked_data of them then stands
    for all.
    """

    expert_tensor_given: bool = False
    recompute_method: str = "uniform"
    recompute_num_layers: int = 1
    recompute_modules: tuple[str, ...] = ()
    activation_offload_layers: int = 0
    optimizer_moments: str = "fp32"
    distributed_optimizer: bool = True
    gradient_bytes: int = 4
    fused_cross_entropy: bool = True
    fused_activation: bool = True
    fp8: bool = False
    number_bytes: int = 2
    lora_rank: int | None = None
    adapter_targets: tuple[str, ...] = ()
    saved_modules: tuple[str, ...] = ()
    asked_data: tuple[int, int] | None = None
    assumed: Literal["", "one", "open"] = ""

    @property
    def copies_asked(self) -> int | None:
        """The one data parallel size that is asked for; None where there is none, or a range."""
        low, high = self.asked_data or (0, 1)
        return low if low == high else None

    @property
    def plain(self) -> Layout:
        """The layout alone."""
        return Layout(**{field.name: getattr(self, field.name) for field in fields(Layout)})


def layers_per_stage(layout: Layout, num_layers: int) -> list[int]:
    """Transformer layers on each pipeline stage, first to last, of a layout that breaks no rule."""
    first, last = (
        [] if size is None else [size] for size in (layout.num_layers_in_first_stage, layout.num_layers_in_last_stage)
    )
    middle = layout.pipeline_parallel_size - len(first + last)
    return [*first, *[(num_layers - sum(first + last)) // max(1, middle)] * middle, *last]


def pieces_of_a_sample(context: int, tensor: int) -> int:
    """Context parallel workers take two pieces each of every sample; with sequence parallel a piece is split again.

    Args:
        tensor: 1 without sequence parallel.
    """
    return 1 if context == 1 else 2 * context * tensor

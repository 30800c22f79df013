"""Which rows Bridge's data loaders take."""

from __future__ import annotations

import importlib
from typing import Any

from torch.utils.data import DataLoader

from raymb.bridge.dataset import PreparedRows
from raymb.bridge.patches.patch import Patch, upstream
from raymb.bridge.sampling import EachOnce, Passes

_SAMPLER = "megatron.bridge.data.samplers:MegatronPretrainingBatchSampler"


def take_every_row() -> None:
    loaders: Any = importlib.import_module("megatron.bridge.data.loaders")
    loaders.build_pretraining_data_loader = _loader


def _loader(
    dataset: PreparedRows | None,
    consumed_samples: int,
    dataloader_type: str,
    micro_batch_size: int,
    num_workers: int,
    data_sharding: bool,
    *,
    data_parallel_rank: int,
    data_parallel_size: int,
    global_batch_size: int,
    seed: int,
    drop_last: bool = True,
    **settings: Any,
) -> DataLoader[Any] | None:
    """A loader of this rank's share of each global batch, which Bridge splits into micro batches."""
    if dataset is None:
        return None
    share: Any = {"rank": data_parallel_rank, "copies": data_parallel_size}
    if dataset.held_out_batch:
        sampler: Any = EachOnce(len(dataset), dataset.held_out_batch, **share)
    else:
        sampler = Passes(len(dataset), global_batch_size, consumed_samples, **share, seed=seed)
    return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, **settings)


def _misses_rows() -> bool:
    """In as many batches as all rows need."""

    def seen(seed: int) -> set[int]:
        sampler = upstream(_SAMPLER)(5, 0, 1, 2, 0, 1, seed=seed)
        batches = [batch for _ in range(2) for batch in sampler]
        return {row for batch in batches[:3] for row in batch}

    return any(seen(seed) != set(range(5)) for seed in range(8))


PATCHES = (
    Patch(
        "every row once an epoch",
        "megatron-bridge",
        "0.6.2",
        _SAMPLER,
        "leaves out the rows at an epoch's end that do not fill a batch, others each time: of 120 rows in batches of "
        "64 an epoch of 2 steps never sees 30 and sees 38 twice; of held-out rows a part is never scored, and one "
        "validation begins where the last one ended",
        _misses_rows,
        take_every_row,
    ),
)

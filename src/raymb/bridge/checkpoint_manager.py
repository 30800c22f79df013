"""Bridge's checkpoint manager, with raymb's way of writing.

Bridge makes the manager by its name and hands it nothing of the run, so the rank's `Saving` is a class attribute.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch.distributed as dist
from megatron.bridge.training.checkpointing import (
    CheckpointLoadContext,
    CheckpointSaveContext,
    DefaultCheckpointManager,
)
from torch.distributed.checkpoint.api import CheckpointException

from raymb.bridge.patches.checkpoint_writing import write_with
from raymb.bridge.saving import Saving
from raymb.bridge.writes import Writes

_WORTH_A_WARNING = 2.0  # seconds


class Manager(DefaultCheckpointManager):
    """Bridge's checkpoint manager with raymb's writes."""

    saving: ClassVar[Saving]

    def save(self, ctx: CheckpointSaveContext, callback_manager: Any) -> None:
        saving, writes = self.saving, ctx.state.async_calls_queue
        assert writes is not None
        saving.before(ctx)
        saving.progress.enter("saving")
        asked = time.monotonic()
        writes.maybe_finalize_async_calls(blocking=True)  # one at a time: results of two would mix
        if (waited := time.monotonic() - asked) > _WORTH_A_WARNING and not saving.warned:
            saving.warned = True
            saving.warn(
                f"the training waited {waited:.0f} s for the checkpoint before to be written: --save_interval "
                f"{saving.job.spec.checkpoint.save_interval} is too short for this storage"
            )
        step, saving.begun = ctx.state.train_state.step, time.monotonic()
        saving.clear(step)
        writes.begin(step, saving.metric(step))
        if saving.job.spec.parallel.fsdp:
            self._write_now(ctx, writes, saving.directory(step))
        else:
            super().save(ctx, None)
        if not saving.job.spec.checkpoint.async_save:
            writes.maybe_finalize_async_calls(blocking=True)
        saving.progress.enter("step")

    def _write_now(self, ctx: CheckpointSaveContext, writes: Any, directory: Path) -> None:
        """Megatron-FSDP's checkpoints Bridge writes itself."""
        error = ""
        try:
            super().save(ctx, None)
        except CheckpointException as problem:  # torch's, on every rank if it fails on one
            error = "; ".join(f"{type(one).__name__}: {one}" for one, _ in problem.failures.values())
        writes.take(sorted(directory.glob(f"__{dist.get_rank()}_*.distcp")), error)

    def load(self, ctx: CheckpointLoadContext) -> tuple[int, int]:
        self.saving.progress.enter("loading")
        return super().load(ctx)


def install(saving: Saving) -> str:
    """Have Bridge use Manager in this process; the name that its config wants."""
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

    Manager.saving = saving
    register_allowed_target_prefix(__name__)

    write_with(lambda: Writes(saving))
    return f"{__name__}.{Manager.__name__}"

"""Megatron made ready in a process."""

from __future__ import annotations

import gc
import os

from raymb.rank.accelerator import ACCELERATORS
from raymb.run.job import Job
from raymb.runtime.importing import importing


def activate(job: Job) -> None:
    """Make Megatron ready in this process: its imports, the accelerator, the patches."""
    from raymb.bridge.patches import imports

    with importing():
        imports.install()
        ACCELERATORS[job.backend].activate(job.spec.parallel.fsdp)
        imports.load_family(job.architecture)
        _apply_patches()
        gc.freeze()  # modules stay: no collection during the training need look through them


def _apply_patches() -> None:
    """Of upstream, after Bridge is imported and before pretrain(); the imports' own has come before Megatron."""
    from raymb.bridge.patches import (
        attention,
        checkpoint_writing,
        collectives,
        fusions,
        hybrids,
        loaders,
        models,
        positions,
        routing,
        startup,
        weights,
    )

    startup.skip_compiling_shipped_helpers()
    loaders.take_every_row()
    weights.read_only_the_models_files()
    checkpoint_writing.keep_write_results_in_process()
    models.give_post_norms_their_epsilon()
    models.leave_queries_without_a_latent_unnormed()
    positions.rotate_samples_without_tokens()
    routing.weigh_by_all_ranks()
    routing.count_for_bias_with_mask()
    hybrids.find_embeddings_by_either_name()
    hybrids.save_norms_of_falcon_once()
    checkpoint_writing.build_config_text_once()
    collectives.give_every_rank_the_whole_list_of_state()
    attention.record_layers_without_masks()
    startup.leave_out_warm_up()
    fusions.install()


def activate_alone(job: Job) -> None:
    """The same in a process that is its own group: of one CPU worker, without Ray and torchrun."""
    import torch.distributed as dist

    if not dist.is_initialized():  # before Megatron is imported: the group looks into packages that are left out then
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    activate(job)

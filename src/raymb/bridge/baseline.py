"""The validation before the first step: what training is compared with."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from raymb.run.job import Job

_SHARE = 0.02
"""Of a run's computation that the validation may take unasked."""


def begins_with_a_validation(job: Job) -> bool:
    """--eval_at_start; of auto whether it costs less than 2 % of the run. A trained sample costs three times as much as
    a validated one, since its backward pass computes twice what the forward pass does."""
    if job.task != "train" or not job.validation_rows or not job.spec.evaluation.eval_interval:
        return False
    if job.spec.evaluation.eval_at_start != "auto":
        return job.spec.evaluation.eval_at_start
    return job.validation_rows < _SHARE * 3 * job.train_iters * job.layout.global_batch_size


@contextlib.contextmanager
def validated_first(job: Job) -> Iterator[None]:
    """Has Bridge's pretrain(), which validates between steps and at the end only, validate before step 1, too."""
    if not begins_with_a_validation(job):
        yield
        return
    # By name: `training.pretrain` of the package is the function.
    pretraining: Any = importlib.import_module("megatron.bridge.training.pretrain")
    train = pretraining.train

    def validate_and_train(
        forward_step: Any, model: Any, optimizer: Any, scheduler: Any, *rest: Any, **named: Any
    ) -> None:
        _, validation_rows, state, *_ = rest
        if state.train_state.step == 0 and state.train_state.do_valid:
            with _parameters_as_they_are(model, state.cfg):
                pretraining.evaluate_and_print_results(
                    state,
                    "iteration 0",
                    forward_step,
                    validation_rows,
                    model,
                    state.cfg.model,
                    callback_manager=named.get("callback_manager"),
                )
        train(forward_step, model, optimizer, scheduler, *rest, **named)

    pretraining.train = validate_and_train
    try:
        yield
    finally:
        pretraining.train = train


@contextlib.contextmanager
def _parameters_as_they_are(model: Any, config: Any) -> Iterator[None]:
    """Without the gathering of parameters that overlaps with a forward pass: before the first step every worker has
    them, as Bridge's own first step takes for granted."""
    from megatron.bridge.training import train
    from megatron.core.utils import get_model_config

    settings = config.ddp.use_megatron_fsdp, config.optimizer.use_distributed_optimizer, config.ddp.overlap_param_gather
    if not train.should_disable_forward_pre_hook(*settings):
        yield
        return
    chunk = get_model_config(model[0])
    gather, chunk.param_sync_func = chunk.param_sync_func, None
    train.disable_forward_pre_hook(model, param_sync=False)
    yield
    train.enable_forward_pre_hook(model)
    chunk.param_sync_func = gather

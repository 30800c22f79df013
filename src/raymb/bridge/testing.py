"""The test's own number and size of batches: Bridge has one setting for validation and test."""

from __future__ import annotations

from megatron.bridge.training.callbacks import Callback, CallbackContext

from raymb.plan.layout import evaluation_batches
from raymb.run.job import Job


class WholeTest(Callback):
    """Makes the test, which comes last, one of all its rows."""

    def __init__(self, job: Job):
        self.batch, self.count = evaluation_batches(job.layout, job.test_rows)

    def on_test_start(self, context: CallbackContext) -> None:
        assert context.state.cfg is not None
        validation = context.state.cfg.validation
        validation.eval_global_batch_size, validation.eval_iters = self.batch, self.count

"""What raymb hangs onto Bridge's training loop: metrics without waiting, and when to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model

from raymb.bridge import export
from raymb.bridge.adapters import trainable_parameters
from raymb.bridge.bad_loss import BadLossGuard, LossSum
from raymb.bridge.collectives import largest_of_all
from raymb.bridge.forward import TokenCounter
from raymb.bridge.profiling import NsysWindow, Profile
from raymb.bridge.saving import Saving
from raymb.bridge.testing import WholeTest
from raymb.checkpoints import manifest as checkpoint
from raymb.checkpoints.remote import RemoteCheckpoints
from raymb.rank.accelerator import chip_name
from raymb.rank.early_stopping import has_stalled
from raymb.rank.progress import Progress
from raymb.rank.stopping import STARTS_AGAIN, StopTogether
from raymb.run.job import Job
from raymb.run.unverified import UnverifiedExport
from raymb.spec.values import bounds
from raymb.telemetry import startup
from raymb.telemetry.records import Emit, HeldOutLoss, LossPart, Part


def make_callbacks(
    job: Job,
    counter: TokenCounter,
    losses: LossSum,
    emit: Emit,
    saving: Saving,
    stop: StopTogether,
) -> list[Callback]:
    """The callbacks of a run, in firing order."""
    interval, last = job.spec.checkpoint.save_interval, job.train_iters

    def saves_after(step: int) -> bool:
        return step == last or bool(interval and step % interval == 0)

    # Megatron counts six operations a weight and token; frozen weights have no gradients of their own, which take two.
    metrics = Metrics(counter, emit, job.layout.num_workers, saves_after, 4 / 6 if job.plan.adapters else 1.0)
    saving.before, saving.train_loss = metrics.flush, metrics.last_loss
    resilience = job.spec.resilience
    guard = BadLossGuard(
        resilience.bad_loss,
        resilience.loss_spike,
        losses,
        saving.warn,
        partial(_leave_out, job),
    )
    callbacks: list[Callback] = [
        Phases(saving.progress, emit),
        metrics,
        guard,
        Validations(job, saving, emit),
        Stops(stop, saving),
    ]
    if job.test_rows:
        callbacks.append(WholeTest(job))
    if job.plan.adapters:
        callbacks.append(TellAdapters(job, emit))
    performance = job.spec.performance
    if performance.profile_steps and performance.profiler == "nsys":
        callbacks.append(NsysWindow(*bounds(performance.profile_steps)))
    elif performance.profile_steps and torch.distributed.get_rank() == 0:
        callbacks.append(Profile(job, *bounds(performance.profile_steps)))
    return callbacks


def _leave_out(job: Job, step: int) -> None:
    checkpoint.leave_out(job.checkpoint_dir, step)
    remote = RemoteCheckpoints.of(job)
    if remote is not None:
        remote.upload([Path(job.checkpoint_dir, checkpoint.LEFT_OUT)])


class Phases(Callback):
    """Says what this rank is doing."""

    def __init__(self, progress: Progress, emit: Emit):
        self.progress, self.emit = progress, emit

    def on_train_start(self, context: CallbackContext) -> None:
        self.progress.step = context.state.train_state.step
        self.progress.enter("first step")
        self.emit(startup.began(startup.FIRST_STEP))

    def on_train_step_end(self, context: CallbackContext) -> None:
        self.progress.finished(context.state.train_state.step + 1)
        if self.progress.phase != "step":
            self.progress.enter("step")

    def on_eval_start(self, context: CallbackContext) -> None:
        if self.progress.phase == "loading":
            self.emit(startup.began(startup.VALIDATION))
        self.progress.enter("validating")

    def on_eval_end(self, context: CallbackContext) -> None:
        self.progress.enter("step")

    def on_test_start(self, context: CallbackContext) -> None:
        self.progress.enter("testing")

    def on_train_end(self, context: CallbackContext) -> None:
        self.progress.enter("exporting")


class TellAdapters(Callback):
    """Says how much is trained, where that is not the whole model."""

    def __init__(self, job: Job, emit: Emit):
        self.job, self.emit = job, emit

    def on_train_start(self, context: CallbackContext) -> None:
        count, whole = trainable_parameters(context.model), self.job.plan.parameters
        saved = self.job.plan.adapters.saved if self.job.plan.adapters else []
        count += len(saved) * self.job.vocab_size * unwrap_model(context.model)[0].config.hidden_size
        if torch.distributed.get_rank() == 0:
            of = ", ".join(["adapters", *saved])
            text = f"{count:,} parameters of {of} to train, {count / whole:.2%} of the model's {whole:,}"
            self.emit({"kind": "phase", "text": text})


class Counted(NamedTuple):
    """What a rank has counted in a step that is over."""

    step: int
    tokens: int
    trained_tokens: int
    skipped: bool


class Metrics(Callback):
    """Emits one record a step from each rank that knows part of it.

    A step's record leaves when the next event begins. By then Bridge itself has waited for the loss, so reading it
    costs nothing, and the interval holds the whole step, with the kernels that were still running at its end.

    Args:
        counter: this rank's tokens.
        emit: takes a record and returns at once.
        world_size: workers, to share a step's floating-point operations among.
        saves_after: whether a checkpoint follows a step; that step's seconds end before it.
        flops_share: of Megatron's count of operations that is really computed.
    """

    def __init__(
        self,
        counter: TokenCounter,
        emit: Emit,
        world_size: int,
        saves_after: Callable[[int], bool],
        flops_share: float,
    ):
        self.counter = counter
        self.flops_share = flops_share
        self.emit = emit
        self.world_size = world_size
        self.saves_after = saves_after
        self.pending: Counted | None = None

    def on_train_start(self, context: CallbackContext) -> None:
        on_first_of_its_copy = (
            parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_context_parallel_rank() == 0
        )
        self.counts_tokens = on_first_of_its_copy and parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        self.copy = parallel_state.get_data_parallel_rank()
        self.knows_loss = self.counts_tokens and self.copy == 0
        if self.knows_loss:
            self.emit(
                {
                    "kind": "start",
                    "step": context.state.train_state.step,
                    "chip": chip_name(),
                    "copies": parallel_state.get_data_parallel_world_size(),
                    "world_size": self.world_size,
                }
            )

    def on_train_step_start(self, context: CallbackContext) -> None:
        self.flush(context)
        self.counter.take()  # what a validation counted
        self.started = time.perf_counter()
        self.flops_before = context.state.train_state.floating_point_operations_so_far
        self.learning_rate = next((group["lr"] for group in context.optimizer.param_groups if group), None)  # type: ignore[union-attr]

    def on_train_step_end(self, context: CallbackContext) -> None:
        self.ended = time.perf_counter()
        tokens, trained_tokens = self.counter.take()
        if self.counts_tokens:
            step = context.state.train_state.step + 1
            self.pending = Counted(step, tokens, trained_tokens, bool(context.skipped_iter))
            self.loss, self.grad_norm = context.loss_dict.get("lm loss"), context.grad_norm  # type: ignore[union-attr]

    def on_eval_start(self, context: CallbackContext) -> None:
        self.flush(context)

    def on_test_start(self, context: CallbackContext) -> None:
        self.flush(context)

    def on_test_end(self, context: CallbackContext) -> None:
        if self.knows_loss and context.total_loss_dict:
            self.emit(_loss_record("test", context.state.train_state.step, float(*context.total_loss_dict.values())))

    def on_train_end(self, context: CallbackContext) -> None:
        self.flush(context)

    def last_loss(self) -> float:
        """The last step's loss; minus infinity on a rank that does not know it."""
        return float(self.loss) if self.knows_loss else float("-inf")  # type: ignore[arg-type]

    def flush(self, context: Any) -> None:
        """Send the last step's record; before a checkpoint, too, whose context has the same state."""
        if self.pending is None:
            return
        counted, self.pending = self.pending, None
        part: Part | LossPart = {
            "kind": "part",
            "step": counted.step,
            "copy": self.copy,
            "tokens": counted.tokens,
            "trained_tokens": counted.trained_tokens,
            "memory_bytes": torch.cuda.max_memory_allocated(),
        }
        if counted.skipped:
            part["skipped"] = True
        if self.knows_loss:
            seconds = (self.ended if self.saves_after(counted.step) else time.perf_counter()) - self.started
            flops = context.state.train_state.floating_point_operations_so_far - self.flops_before
            part = {
                **part,
                "time": time.time(),
                "loss": float(self.loss),  # type: ignore[arg-type]
                "grad_norm": self.grad_norm,
                "learning_rate": self.learning_rate,
                "step_seconds": seconds,
                "tflops_per_worker": self.flops_share * flops / seconds / self.world_size / 1e12,
            }
        self.emit(part)


def _loss_record(kind: Literal["validation", "test"], step: int, loss: float) -> HeldOutLoss:
    return {"kind": kind, "step": step, "time": time.time(), "loss": loss}


class Validations(Callback):
    """Every rank learns of each validation's loss: it belongs to the checkpoints, and may end the training."""

    def __init__(self, job: Job, saving: Saving, emit: Emit):
        self.evaluation = job.spec.evaluation
        self.saving = saving
        self.emit = emit

    def on_eval_end(self, context: CallbackContext) -> None:
        step = context.state.train_state.step
        losses = list((context.total_loss_dict or {}).values())
        loss = largest_of_all(float(losses[0]) if losses else float("-inf"))
        if any(at == step for at, _ in self.saving.losses):
            return  # Bridge validates once more after the last step; a step has one validation
        if torch.distributed.get_rank() == 0:
            self.emit(_loss_record("validation", step, loss))
        self.saving.validated(step, loss)
        if has_stalled(
            self.saving.losses, self.evaluation.early_stopping_patience, self.evaluation.early_stopping_threshold
        ):
            # The loop ends, and with it comes all that follows a last step.
            _train_config(context).train_iters = self.saving.last_step = step


def _train_config(context: CallbackContext) -> Any:
    assert context.state.cfg is not None
    return context.state.cfg.train


class Stops(Callback):
    """Leaves the loop after the step that all ranks have agreed on; Bridge saves and goes."""

    def __init__(self, stop: StopTogether, saving: Saving):
        self.stop, self.saving = stop, saving

    def on_train_start(self, context: CallbackContext) -> None:
        self.stop.start(context.state.train_state.step)

    def on_train_step_end(self, context: CallbackContext) -> None:
        step, last = context.state.train_state.step + 1, _train_config(context).train_iters
        reason = self.stop.leave_after(step)
        if reason is None:
            return
        if step >= last:
            self.stop.left = False  # the run ends here anyway, with all that follows a last step
            return
        _train_config(context).exit_interval = step
        if reason not in STARTS_AGAIN:  # where it does, it resumes from the checkpoint before
            self.saving.last_step = step

    def on_train_end(self, context: CallbackContext) -> None:
        self.stop.close()


class HuggingFaceExport(Callback):
    """Writes the tuned model as a Hugging Face directory while the model is still there.

    last_step: of a training that has come to its end, else None; written: what of it is to be verified.
    """

    def __init__(self, job: Job, hf_bridge: AutoBridge, emit: Emit, progress: Progress):
        self.job = job
        self.hf_bridge = hf_bridge
        self.emit = emit
        self.progress = progress
        self.last_step: int | None = None
        self.written: UnverifiedExport | None = None

    def on_train_end(self, context: CallbackContext) -> None:
        self.last_step = context.state.train_state.step
        if self.job.spec.checkpoint.export_checkpoint == "best" or self.job.spec.parallel.fsdp:
            return  # the last validation is still to come; no worker has whole weights, but their checkpoint has
        if torch.distributed.get_rank() == 0:
            what = "model" if self.job.plan.adapters is None else "adapter"
            self.emit({"kind": "phase", "text": f"writing the Hugging Face {what}"})
        self.written = export.write_results(self.hf_bridge, context.model, self.job, self.progress)

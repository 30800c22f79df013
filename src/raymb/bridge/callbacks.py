"""What raymb hangs onto Bridge's training loop: metrics without waiting, and checkpoints made known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from megatron.bridge.models.conversion.auto_bridge import AutoBridge
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.core import parallel_state

from raymb.bridge import checkpoint, export
from raymb.bridge.forward import TokenCounter
from raymb.job import Job

Emit = Callable[[dict[str, Any]], None]
OnCheckpoint = Callable[[str, int], None]


def make_callbacks(
    job: Job, hf_bridge: AutoBridge, counter: TokenCounter, emit: Emit, on_checkpoint: OnCheckpoint
) -> list[Callback]:
    """The callbacks of a run, in firing order."""
    interval, last = job.spec.checkpoint.save_interval, job.plan["train_iters"]

    def saves_after(step: int) -> bool:
        return step == last or bool(interval and step % interval == 0)

    metrics = Metrics(counter, emit, job.plan["num_workers"], saves_after)
    callbacks: list[Callback] = [metrics, Checkpoints(job.checkpoint_dir, emit, on_checkpoint)]
    return [*callbacks, HuggingFaceExport(job, hf_bridge, emit)] if job.spec.checkpoint.export_hf else callbacks


class Metrics(Callback):
    """Emits one record a step from each rank that knows part of it.

    A step's record leaves when the next event begins. By then Bridge itself has waited for the loss, so reading it
    costs nothing, and the interval holds the whole step, with the kernels that were still running at its end.

    Args:
        counter: this rank's tokens.
        emit: takes a record and returns at once.
        world_size: workers, to share a step's floating-point operations among.
        saves_after: whether a checkpoint follows a step; that step's seconds end before it.
    """

    def __init__(self, counter: TokenCounter, emit: Emit, world_size: int, saves_after: Callable[[int], bool]):
        self.counter = counter
        self.emit = emit
        self.world_size = world_size
        self.saves_after = saves_after
        self.pending: dict[str, Any] | None = None
        self.validated = 0

    def on_train_start(self, context: CallbackContext) -> None:
        on_first_of_its_copy = (
            parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_context_parallel_rank() == 0
        )
        self.counts_tokens = on_first_of_its_copy and parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        self.copy = parallel_state.get_data_parallel_rank()
        self.knows_loss = self.counts_tokens and self.copy == 0
        if self.knows_loss:
            chip = torch.cuda.get_device_name()
            self.emit({"kind": "start", "step": context.state.train_state.step, "chip": chip})

    def on_train_step_start(self, context: CallbackContext) -> None:
        self._flush(context)
        self.counter.take()  # what a validation counted
        self.started = time.perf_counter()
        self.flops_before = context.state.train_state.floating_point_operations_so_far
        self.learning_rate = next((group["lr"] for group in context.optimizer.param_groups if group), None)  # type: ignore[union-attr]

    def on_train_step_end(self, context: CallbackContext) -> None:
        self.ended = time.perf_counter()
        tokens, trained_tokens = self.counter.take()
        if self.counts_tokens:
            step = context.state.train_state.step + 1
            self.pending = {
                "kind": "part",
                "step": step,
                "copy": self.copy,
                "tokens": tokens,
                "trained_tokens": trained_tokens,
            }
            self.loss, self.grad_norm = context.loss_dict.get("lm loss"), context.grad_norm  # type: ignore[union-attr]

    def on_eval_start(self, context: CallbackContext) -> None:
        self._flush(context)

    def on_eval_end(self, context: CallbackContext) -> None:
        step = context.state.train_state.step
        # Bridge validates once more after the last step, on other batches; a step has one validation.
        if self.knows_loss and context.total_loss_dict and step != self.validated:
            self.validated = step
            self._emit_loss("validation", context)

    def on_test_start(self, context: CallbackContext) -> None:
        self._flush(context)

    def on_test_end(self, context: CallbackContext) -> None:
        if self.knows_loss and context.total_loss_dict:
            self._emit_loss("test", context)

    def _emit_loss(self, kind: str, context: CallbackContext) -> None:
        loss = float(next(iter(context.total_loss_dict.values())))  # type: ignore[union-attr]
        self.emit({"kind": kind, "step": context.state.train_state.step, "time": time.time(), "loss": loss})

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        self._flush(context)

    def on_train_end(self, context: CallbackContext) -> None:
        self._flush(context)

    def _flush(self, context: CallbackContext) -> None:
        if self.pending is None:
            return
        record, self.pending = self.pending, None
        record["memory_bytes"] = torch.cuda.max_memory_allocated()
        if self.knows_loss:
            seconds = (self.ended if self.saves_after(record["step"]) else time.perf_counter()) - self.started
            flops = context.state.train_state.floating_point_operations_so_far - self.flops_before
            record |= {
                "time": time.time(),
                "loss": float(self.loss),  # type: ignore[arg-type]
                "grad_norm": self.grad_norm,
                "learning_rate": self.learning_rate,
                "step_seconds": seconds,
                "tflops_per_worker": flops / seconds / self.world_size / 1e12,
            }
        self.emit(record)


class Checkpoints(Callback):
    """Makes a whole checkpoint known: first `latest`, then whoever asked."""

    def __init__(self, checkpoint_dir: str, emit: Emit, on_checkpoint: OnCheckpoint):
        self.checkpoint_dir = checkpoint_dir
        self.emit = emit
        self.on_checkpoint = on_checkpoint

    def on_checkpoint_save(self, context: CallbackContext) -> None:
        step = context.state.train_state.step
        torch.distributed.barrier()  # every rank has written its part
        if torch.distributed.get_rank() == 0:
            checkpoint.point_latest_at(self.checkpoint_dir, step)
            self.emit({"kind": "checkpoint", "step": step})
        torch.distributed.barrier()
        self.on_checkpoint(checkpoint.iteration_dir(self.checkpoint_dir, step), step)


class HuggingFaceExport(Callback):
    """Writes the tuned model as a Hugging Face directory while the model is still there."""

    def __init__(self, job: Job, hf_bridge: AutoBridge, emit: Emit):
        self.job = job
        self.hf_bridge = hf_bridge
        self.emit = emit

    def on_train_end(self, context: CallbackContext) -> None:
        if torch.distributed.get_rank() == 0:
            self.emit({"kind": "phase", "text": "writing the Hugging Face model"})
        export.write_hf_model(self.hf_bridge, context.model, self.job)

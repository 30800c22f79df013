"""A window of steps under a profiler. Bridge's own torch profile goes beside a TensorBoard directory of its own, which
raymb does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.bridge.training.callbacks import Callback, CallbackContext
from torch.profiler import ProfilerActivity, profile

from raymb.run.job import Job


class Profile(Callback):
    """Writes RUN/profile/steps-FIRST-LAST.json.gz, for chrome://tracing or ui.perfetto.dev, and a table of the
    operations that took the longest, as .txt. Outside of the window a step pays one comparison.

    Args:
        first, last: steps, 1 is the first.
    """

    def __init__(self, job: Job, first: int, last: int):
        self.first, self.last = first, last
        self.file = Path(job.run_dir, "profile", f"steps-{first}-{last}.json.gz")
        self.on_gpu = job.backend == "cuda"
        self.profile: profile | None = None

    def on_train_step_start(self, context: CallbackContext) -> None:
        if context.state.train_state.step + 1 == self.first:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
            self.profile = profile(activities=activities, record_shapes=True)
            self.profile.start()

    def on_train_step_end(self, context: CallbackContext) -> None:
        if self.profile is not None and context.state.train_state.step + 1 == self.last:
            self._write()

    def on_train_end(self, context: CallbackContext) -> None:
        if self.profile is not None:
            self._write()

    def _write(self) -> None:
        assert self.profile is not None
        if self.on_gpu:
            torch.cuda.synchronize()
        self.profile.stop()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.profile.export_chrome_trace(str(self.file))
        order = "self_device_time_total" if self.on_gpu else "self_cpu_time_total"
        table = self.profile.key_averages().table(sort_by=order, row_limit=40)
        self.file.with_suffix("").with_suffix(".txt").write_text(table, encoding="utf-8")
        self.profile = None


class NsysWindow(Callback):
    """Tells Nsight Systems, under which the worker was started (raymb.driver.trainer), when to record.

    Args:
        first, last: steps, 1 is the first.
    """

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last

    def on_train_step_start(self, context: CallbackContext) -> None:
        if context.state.train_state.step + 1 == self.first:
            _runtime().cudaProfilerStart()

    def on_train_step_end(self, context: CallbackContext) -> None:
        if context.state.train_state.step + 1 == self.last:
            torch.cuda.synchronize()
            _runtime().cudaProfilerStop()


def _runtime() -> Any:
    return torch.cuda.cudart()

"""A NaN, or a spike of the loss, is found before it reaches the weights.

The gradient norm is a number on every rank before the weights change, the same on all of them, and NaN when the loss
is: looking at it costs nothing, while Megatron's own checks wait for the device at each micro batch. A spike needs the
loss itself, which only the last pipeline stage has, and so one collective a step; it is looked for when asked for.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.bridge.training.callbacks import Callback, CallbackContext

from raymb.errors import BadLoss

_HISTORY, _ENOUGH = 32, 8
_MOST_IN_A_ROW = 8


class LossSum:
    """This rank's (sum of losses, tokens) of the step's micro batches, on the device."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []

    def over_all_ranks(self) -> float:
        """The step's loss. Collective. Ranks that know none add nothing, and copies count on both sides."""
        total = torch.zeros(2, dtype=torch.float64, device="cuda")
        for part in self.parts:
            total += part.view(-1)
        self.parts.clear()
        dist.all_reduce(total)
        loss, tokens = total.tolist()
        return loss / tokens if tokens else 0.0


class BadLossGuard(Callback):
    """Stands between the gradients and the optimizer.

    Args:
        mode: fail or rollback raise BadLoss on every rank; skip leaves the update out.
        spike: how many times the median of the last steps is too much; None to look for NaN only.
        losses: what the forward passes add to, where spikes are looked for.
        warn: takes a sentence about a step that was left out.
        leave_out: remembers, for all later starts of this run, a step whose batch is to be left out.
    """

    def __init__(
        self,
        mode: str,
        spike: float | None,
        losses: LossSum,
        warn: Callable[[str], None],
        leave_out: Callable[[int], None],
    ):
        self.mode, self.spike, self.losses, self.warn, self.leave_out = mode, spike, losses, warn, leave_out
        self.history: deque[float] = deque(maxlen=_HISTORY)
        self.in_a_row = 0
        self.step = 0
        self.norm: float | None = None
        self.norm_of_gradients: Callable[[], float]

    def on_train_start(self, context: CallbackContext) -> None:
        optimizer: Any = context.optimizer
        self.norm_of_gradients = optimizer.get_grad_norm
        for name in ("get_grad_norm", "clip_grad_norm"):
            setattr(optimizer, name, self._remembering(getattr(optimizer, name)))
        update = optimizer.step_with_ready_grads
        optimizer.step_with_ready_grads = lambda: self._allows() and update()

    def on_train_step_start(self, context: CallbackContext) -> None:
        self.step, self.norm = context.state.train_state.step + 1, None
        if self.spike:
            self.losses.parts.clear()  # what a validation left

    def _remembering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def norm_of(*args: Any, **kwargs: Any) -> Any:
            self.norm = function(*args, **kwargs)
            return self.norm

        return norm_of

    def _allows(self) -> bool:
        what = self._what_is_bad()
        self.in_a_row = self.in_a_row + 1 if what else 0
        if not what:
            return True
        if self.mode == "rollback" and dist.get_rank() == 0:
            self.leave_out(self.step)
        if self.mode != "skip":
            raise BadLoss(self.step, what)
        if self.in_a_row > _MOST_IN_A_ROW:
            raise BadLoss(self.step, f"{what}, as in the {_MOST_IN_A_ROW} steps before")
        self.warn(f"step {self.step}: {what}; its update is left out (--bad_loss skip)")
        return False

    def _what_is_bad(self) -> str:
        loss = self.losses.over_all_ranks() if self.spike else None
        if self.norm is None:  # Megatron-FSDP's optimizer computes none with --clip_grad 0
            self.norm = self.norm_of_gradients()
        if not math.isfinite(self.norm):
            return f"the gradient norm is {float(self.norm)}"
        if loss is None or self.spike is None:
            return ""
        usual = statistics.median(self.history) if len(self.history) >= _ENOUGH else math.inf
        if loss > self.spike * usual:
            return f"a loss of {loss:.4g} is more than {self.spike:g} times the usual {usual:.4g} (--loss_spike)"
        self.history.append(loss)
        return ""

"""`torchrun bad_loss_ranks.py OUT`: OUT/RANK.json is each check's name and what was wrong, on the CPU accelerator."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from raymb import cpu
from raymb.bridge.patches import imports

dist.init_process_group("gloo")
imports.install()
cpu.activate()

import torch  # noqa: E402
from megatron.core.optimizer.optimizer import ChainedOptimizer, FP32Optimizer  # noqa: E402
from megatron.core.optimizer.optimizer_config import OptimizerConfig  # noqa: E402

from raymb.bridge.bad_loss import BadLossGuard, LossSum  # noqa: E402
from raymb.errors import BadLoss  # noqa: E402

RANK = dist.get_rank()
NAN, INF = float("nan"), float("inf")
CHECKS: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS.append(function)
    return function


class Optimizer:
    """SGD with step() as Megatron's optimizers have it: the norm from one of two methods, then the update. With clips
    None no norm is computed, as by the one optimizer of Megatron-FSDP with --clip_grad 0."""

    def __init__(self, clips: bool | None):
        self.clips = clips
        self.weight, self.grad = torch.ones(4), torch.zeros(4)

    def get_grad_norm(self) -> float:
        return self.grad.norm().item()

    def clip_grad_norm(self, most: float) -> float:
        norm = self.grad.norm().item()
        self.grad *= min(1.0, most / norm) if norm else 1.0
        return norm

    def step_with_ready_grads(self) -> bool:
        self.weight -= self.grad
        return True

    def step(self) -> tuple[bool, float, None]:
        norm = 0.0 if self.clips is None else self.clip_grad_norm(1.0) if self.clips else self.get_grad_norm()
        return self.step_with_ready_grads(), norm, None


def megatron_optimizer(clip: float = 1.0, alone: bool = False) -> Any:
    """Megatron's own, as Bridge gets it, over a parameter whose gradient is `grad`.

    Args:
        alone: not in a chain, as with Megatron-FSDP.
    """
    parameter = torch.nn.Parameter(torch.ones(4))
    config = OptimizerConfig(optimizer="sgd", lr=1.0, clip_grad=clip)
    one = FP32Optimizer(torch.optim.SGD([parameter], lr=1.0), config, lambda *_: None)
    one.grad_stats_parallel_group = one.tp_group = dist.group.WORLD
    given: Any = one if alone else ChainedOptimizer([one])
    given.weight = parameter.data
    given.grad = parameter.main_grad = torch.zeros(4)
    return given


def unclipped() -> Any:
    return megatron_optimizer(clip=0.0)


def unclipped_alone() -> Any:
    return megatron_optimizer(clip=0.0, alone=True)


class Run:
    """A guard on an optimizer, as Bridge's loop calls them."""

    def __init__(self, mode: str, spike: float | None = None, optimizer: Any = None, losses: Any = None):
        self.optimizer = optimizer or Optimizer(clips=False)
        self.losses = losses or LossSum()
        self.warned: list[str] = []
        self.left_out: list[int] = []
        self.guard = BadLossGuard(mode, spike, self.losses, self.warned.append, self.left_out.append)
        self.context: Any = SimpleNamespace(
            optimizer=self.optimizer, state=SimpleNamespace(train_state=SimpleNamespace(step=40))
        )
        self.guard.on_train_start(self.context)

    def step(self, gradient: float = 0.25, loss: float | None = None) -> tuple[bool, float]:
        self.guard.on_train_step_start(self.context)
        if loss is not None:
            self.forward(loss)
        self.optimizer.grad.fill_(gradient)
        successful, norm, _ = self.optimizer.step()
        self.context.state.train_state.step += 1
        return successful, norm

    def forward(self, loss: float) -> None:
        """Two micro batches on the last rank, as on the last pipeline stage: (sum of losses, tokens)."""
        if dist.get_world_size() - 1 == RANK:
            self.losses.parts += [torch.tensor([loss * tokens, tokens]) for tokens in (3.0, 5.0)]


def refused(run: Run, gradient: float = 0.25, loss: float | None = None) -> BadLoss:
    before = run.optimizer.weight.clone()
    try:
        run.step(gradient, loss)
    except BadLoss as error:
        assert torch.equal(run.optimizer.weight, before), "the weights have changed"
        return error
    raise AssertionError("no BadLoss")


KINDS: list[Callable[[], Any]] = [
    lambda: Optimizer(clips=False),
    lambda: Optimizer(clips=True),
    lambda: Optimizer(clips=None),
    megatron_optimizer,
    unclipped,
    unclipped_alone,
]


@check
def good_steps_go_through() -> None:
    for kind in KINDS:
        run, plain = Run("fail", optimizer=kind()), kind()
        for gradient in (0.25, 0.0, -1.0, 100.0):
            plain.grad.fill_(gradient)
            theirs = plain.step()
            assert run.step(gradient) == theirs[:2] and theirs[0]
        assert torch.equal(run.optimizer.weight, plain.weight) and not torch.equal(plain.weight, torch.ones(4))
        assert (run.warned, run.left_out) == ([], [])


@check
def nan_and_infinity_reach_no_weight() -> None:
    for kind in KINDS:
        for gradient in (NAN, INF, -INF):
            run = Run("fail", optimizer=kind())
            run.step()
            error = refused(run, gradient)
            assert error.step == 42 and "the gradient norm is " in error.message and "--bad_loss" in error.hint
            assert run.left_out == []


@check
def rollback_leaves_the_step_out_once_for_all_ranks() -> None:
    run = Run("rollback")
    assert refused(run, NAN).step == 41
    assert run.left_out == ([41] if RANK == 0 else [])


@check
def skip_leaves_the_update_out_and_continues() -> None:
    for kind in KINDS:
        run = Run("skip", optimizer=kind())
        run.step()
        before = run.optimizer.weight.clone()
        successful, norm = run.step(NAN)
        assert not successful and (math.isnan(norm or NAN)) and torch.equal(run.optimizer.weight, before)
        assert run.warned == ["step 42: the gradient norm is nan; its update is left out (--bad_loss skip)"]
        assert run.step()[0] and not torch.equal(run.optimizer.weight, before)
        assert torch.isfinite(run.optimizer.weight).all()


@check
def too_many_in_a_row_end_the_run() -> None:
    run = Run("skip")
    for _ in range(2):
        assert [run.step(NAN)[0] for _ in range(8)] == [False] * 8
        assert run.step()[0], "a good one begins a new row"
    for _ in range(8):
        run.step(NAN)
    error = refused(run, NAN)
    assert error.message.endswith("the gradient norm is nan, as in the 8 steps before")
    assert len(run.warned) == 24


@check
def without_loss_spike_no_step_costs_a_collective() -> None:
    class Unused:
        def over_all_ranks(self) -> float:
            raise AssertionError("a collective")

    assert Run("fail", losses=Unused()).step()[0]


@check
def a_step_has_one_loss_on_all_ranks() -> None:
    losses = LossSum()
    losses.parts += [torch.tensor([[2.0, 1.0]]), torch.tensor([4.0 + RANK, 2.0])]
    assert losses.over_all_ranks() == 13 / 6  # 2 + 4 and 2 + 5
    assert losses.parts == []
    assert losses.over_all_ranks() == 0.0, "no tokens"


@check
def a_spike_is_seen_by_every_rank() -> None:
    run = Run("fail", spike=3.0)
    for number in range(8):
        run.step(loss=2.0 if number else 90.0)  # the median, not the mean
    assert run.step(loss=5.99)[0]
    error = refused(run, loss=6.01)
    assert error.message == "step 50: a loss of 6.01 is more than 3 times the usual 2 (--loss_spike)"


@check
def a_spike_needs_a_history() -> None:
    run = Run("fail", spike=3.0)
    assert [run.step(loss=loss)[0] for loss in (1.0, 50.0, 1.0, 1.0, 1.0, 1.0, 1.0)] == [True] * 7
    assert run.step(loss=50.0)[0], "seven are too few"
    refused(run, loss=50.0)


@check
def the_usual_follows_the_last_steps_and_no_spike() -> None:
    run = Run("skip", spike=2.0)
    for _ in range(8):
        run.step(loss=1.0)
    assert [run.step(loss=4.0)[0] for _ in range(8)] == [False] * 8, "or the spikes would become the usual"
    for number in range(33):
        assert run.step(loss=1.9 if number < 17 else 3.7)[0], "a loss that rises slowly is none"
    assert run.step(loss=3.9)[0]


@check
def nan_is_told_before_a_spike() -> None:
    run = Run("fail", spike=3.0)
    for _ in range(8):
        run.step(loss=1.0)
    assert "gradient norm is nan" in refused(run, NAN, loss=NAN).message


@check
def a_validation_between_is_not_part_of_the_step() -> None:
    """Bridge validates with the same forward step, whose losses are kept, too."""
    run = Run("fail", spike=3.0)
    for _ in range(8):
        run.step(loss=1.0)
    run.forward(1000.0)
    assert run.step(loss=1.0)[0]


wrong = {}
for function in CHECKS:
    try:
        function()
        wrong[function.__name__] = ""
    except Exception:
        wrong[function.__name__] = traceback.format_exc()
    dist.barrier()
Path(sys.argv[1], f"{RANK}.json").write_text(json.dumps(wrong))
dist.destroy_process_group()

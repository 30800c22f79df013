"""Bridge's forward step of a model, with the tokens counted on the host as the batch passes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from raymb.model.vision import forward_step
from raymb.run.job import Job


class TokenCounter:
    """Tokens of this rank's micro batches since the last `take`. Counted on CPU tensors, before they are moved to
    the device, so that counting never waits for it."""

    def __init__(self) -> None:
        self.tokens = 0
        self.trained_tokens = 0

    def count(self, batch: dict[str, Any]) -> None:
        self.tokens += batch["tokens"].numel()
        self.trained_tokens += int(batch["loss_mask"].sum())

    def take(self) -> tuple[int, int]:
        counted = self.tokens, self.trained_tokens
        self.tokens = self.trained_tokens = 0
        return counted


def counting_forward_step(
    job: Job, beat: Callable[[], None], keep_loss: Callable[[Any], None] | None = None
) -> tuple[Callable, TokenCounter]:
    """Bridge's forward_step around an iterator that counts, and the counter.

    Args:
        job: of a model with a forward step.
        beat: called with each forward pass, on every rank.
        keep_loss: takes the (sum, tokens) of each micro batch's loss, a tensor on the device, where there is one.
    """
    from megatron.bridge.training.state import GlobalState

    counter, bridges_step = TokenCounter(), forward_step_of(job)

    def counted(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            counter.count(batch)
            yield batch

    def step(state: GlobalState, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        beat()
        batches: Any = counted(data_iterator) if data_iterator is not None else None
        output, loss_function = bridges_step(state, batches, model, return_schedule_plan)
        return output, loss_function if keep_loss is None else _keeping(loss_function, keep_loss)

    # Bridge tells by this annotation that it should pass its state; as a string it would not recognise it.
    step.__annotations__["state"] = GlobalState
    return step, counter


def forward_step_of(job: Job) -> Callable:
    """Bridge's own forward step of a job's model, which is told what tokens are trained if it has experts; for a
    vision-language model the micro batch's images are put together first."""
    name = forward_step(job.spec.train.step_func, job.architecture)
    bridges_step = import_module(f"megatron.bridge.training.{name}").forward_step
    if name != "vlm_step":
        return import_module("raymb.bridge.balancing").counting_trained_tokens(bridges_step)
    from megatron.bridge.training.state import GlobalState

    def step(state: GlobalState, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        batches: Any = _with_images(data_iterator) if data_iterator is not None else None
        return bridges_step(state, batches, model, return_schedule_plan)

    step.__annotations__["state"] = GlobalState
    return step


def _with_images(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Bridge cuts a step's batch into micro batches along samples, so images travel as a list with an entry a sample;
    vlm_step takes the tensors of all."""
    import torch
    from megatron.bridge.training.utils.visual_inputs import GenericVisualInputs

    for batch in batches:
        seen = [images for images in batch["images"] if images]
        joined = {name: torch.cat([images[name] for images in seen]) for name in (seen[0] if seen else ())}
        # A new one: with virtual stages each of a worker's chunks gets the same batch.
        rest = {name: value for name, value in batch.items() if name != "images"}
        yield {**rest, "visual_inputs": GenericVisualInputs(**joined) if joined else None}


def _keeping(loss_function: Callable, keep_loss: Callable[[Any], None]) -> Callable:
    def kept(*args: Any, **kwargs: Any) -> Any:
        result = loss_function(*args, **kwargs)
        keep_loss(result[-1]["lm loss"].detach())
        return result

    return kept

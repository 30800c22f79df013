"""The engines of a tuned model and its base: one after the other, or all at once for a conversation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console

from raymb.errors import SpecError
from raymb.inference.engine import BASE, TUNED, Engine, EngineSettings
from raymb.inference.tuned_model import TunedModel

Opened = contextlib.AbstractContextManager[dict[str, Engine]]


def each_engine(
    model: TunedModel, tokenizer: object, compare: bool, settings: EngineSettings, console: Console
) -> Iterator[tuple[str, Engine]]:
    """(name, engine) of the base with `compare`, and of the tuned model. A model is loaded when its turn comes, and
    freed before the next one is; an adapter and its base are one model.

    Raises:
        SpecError: nobody says what the base is.
        ModelError: the model cannot be loaded.
    """
    loads = _loads(model, compare)
    return _one_after_the_other(model, tokenizer, loads, settings, console)


def _one_after_the_other(
    model: TunedModel, tokenizer: object, loads: list[list[str]], settings: EngineSettings, console: Console
) -> Iterator[tuple[str, Engine]]:
    for names in loads:
        with contextlib.ExitStack() as stack:
            with console.status(f"loading {_path(model, names)}"):
                engines = stack.enter_context(_opened(model, names, tokenizer, settings))
            yield from engines.items()


@contextlib.contextmanager
def all_engines(
    model: TunedModel, tokenizer: object, compare: bool, settings: EngineSettings, console: Console
) -> Iterator[dict[str, Engine]]:
    """The same engines, all of them loaded: for a conversation, where each question goes to both models.

    Raises: as each_engine.
    """
    loads = _loads(model, compare)
    if len(loads) > 1:
        console.print(
            "both models stay in memory for a conversation; with --prompt or --prompts there is one at a time",
            highlight=False,
            soft_wrap=True,
        )
    with contextlib.ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for names in loads:
            with console.status(f"loading {_path(model, names)}"):
                engines |= stack.enter_context(_opened(model, names, tokenizer, settings, 1 / len(loads)))
        yield engines


def _loads(model: TunedModel, compare: bool) -> list[list[str]]:
    """The engines that share a model in memory, in a list each."""
    if compare and not model.base:
        raise SpecError(f"--compare: nobody says which model {model.path} was tuned from", "name it: --base MODEL")
    if model.adapter and not model.base:
        raise SpecError(f"{model.path} does not say which model it belongs to", "name it: --base MODEL")
    names = [BASE, TUNED] if compare else [TUNED]
    return [names] if model.adapter else [[name] for name in names]


def _path(model: TunedModel, names: list[str]) -> str:
    return model.path if TUNED in names else str(model.base)


def _opened(
    model: TunedModel, names: list[str], tokenizer: object, settings: EngineSettings, share: float = 1.0
) -> Opened:
    if settings.kind == "vllm":
        from raymb.inference.vllm_engine import opened_vllm

        return opened_vllm(model, names, tokenizer, settings, share)
    from raymb.inference.transformers_engine import opened_transformers

    return opened_transformers(model, names, tokenizer, settings)

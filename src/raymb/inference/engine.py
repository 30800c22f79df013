"""What an engine is: tokens in, tokens out. transformers_engine.py and vllm_engine.py have one each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raymb.errors import SpecError
from raymb.inference.tuned_model import TunedModel
from raymb.model.stop_tokens import answer_ends

Done = Callable[[int], None]
BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen. It is all that counts: generation_config.json says which tokens end an answer,
    and what else it says (temperature, top_p, top_k, repetition_penalty, ...) is not used, by no engine.

    Args:
        max_new_tokens: of an answer.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the likeliest tokens that make up this probability.
        seed: of the draws.

    Raises:
        SpecError: top_p without a temperature.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 1234

    def __post_init__(self) -> None:
        if self.top_p != 1.0 and not self.temperature:
            raise SpecError(
                f"--top_p {self.top_p:g} with --temperature 0: the likeliest token is taken, and none is drawn",
                "add --temperature 1, or another one above 0, or leave --top_p out",
            )

    def __str__(self) -> str:
        chosen = "greedy (the likeliest token each time)"
        if self.temperature:
            chosen = f"drawn at temperature {self.temperature:g}, top_p {self.top_p:g}, seed {self.seed}"
        return f"{chosen}, at most {self.max_new_tokens} new tokens; generation_config.json says where an answer ends"


@dataclass(frozen=True)
class EngineSettings:
    """
    Args:
        kind: transformers or vllm.
        gpus: 0 computes on the CPU.
        batch_size: prompts at once (transformers; vLLM batches by itself).
    """

    kind: str = "transformers"
    gpus: int = 0
    batch_size: int = 8


class Engine(Protocol):
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, done: Done) -> list[list[int]]:
        """The tokens generated after each prompt, without those that end an answer.

        Args:
            done: told how many more prompts are answered.
        """
        ...


def weights_of(model: TunedModel, name: str) -> str:
    """The directory whose weights an engine loads: an adapter is put onto its base's.

    Args:
        name: BASE or TUNED.
    """
    return model.base_files() if model.adapter or name == BASE else model.files()


def ends_of(model: TunedModel, name: str, tokenizer: Any) -> list[int]:
    """Tokens that end an answer of BASE or TUNED. PEFT and vLLM would read the base's settings alone."""
    adapter = [Path(model.path)] if model.adapter and name == TUNED else []
    return answer_ends([Path(weights_of(model, name)), *adapter], tokenizer)


def until(tokens: list[int], ends: Sequence[int]) -> list[int]:
    return tokens[: next((index for index, token in enumerate(tokens) if token in ends), len(tokens))]

"""What generates: transformers, or vLLM where it is installed and there is a GPU. Tokens in, tokens out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raymb.errors import ModelError, SpecError
from raymb.export.hf_model import load_hf_model
from raymb.inference.choice import adapter_config, max_lora_rank
from raymb.inference.tuned_model import TunedModel
from raymb.model.remote_code import hint_for
from raymb.model.stop_tokens import stop_tokens

Done = Callable[[int], None]
BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Sampling:
    """
    Args:
        max_new_tokens: of an answer.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the likeliest tokens that make up this probability.
        seed: of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 1234


class Engine(Protocol):
    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, done: Done) -> list[list[int]]:
        """The tokens generated after each prompt, without those that end an answer.

        Args:
            done: told how many more prompts are answered.
        """
        ...


def open_engines(model: TunedModel, tokenizer: Any, compare: bool, kind: str, batch_size: int = 8) -> dict[str, Engine]:
    """An engine for the tuned model, and with `compare` one for its base, by name. An adapter's base is loaded once.

    Args:
        kind: transformers or vllm (raymb.inference.choice).
        batch_size: prompts at once (transformers; vLLM batches by itself).

    Raises:
        SpecError: nobody says what the base is.
        ModelError: the model cannot be loaded.
    """
    if compare and not model.base:
        raise SpecError(f"--compare: nobody says which model {model.path} was tuned from", "name it: --base MODEL")
    if model.adapter and not model.base:
        raise SpecError(f"{model.path} does not say which model it belongs to", "name it: --base MODEL")
    if kind == "vllm":
        return _open_vllm(model, compare)
    if model.adapter:
        both = _load_adapter(model)
        stops = stop_tokens(Path(model.path))
        engines: dict[str, Engine] = {TUNED: Transformers(both, tokenizer, batch_size, stops=stops)}
        return {BASE: Transformers(both, tokenizer, batch_size, adapter=False), **engines} if compare else engines
    paths = {**({BASE: model.base_files()} if compare else {}), TUNED: model.path}
    return {
        name: Transformers(load_model(path, model.trust_remote_code), tokenizer, batch_size)
        for name, path in paths.items()
    }


def load_model(path: str, trust_remote_code: bool = False) -> Any:
    """A causal language model, in fp32 on a CPU (bf16 is slow on many), else in its own type on the GPU."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    try:
        dtype = "auto" if on_gpu else torch.float32
        model = load_hf_model(path, trust_remote_code=trust_remote_code, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be loaded ({' '.join(str(error).split())[:300]})", hint_for(error)) from None
    return model.to("cuda" if on_gpu else "cpu").eval()


def _load_adapter(model: TunedModel) -> Any:
    from peft import PeftModel

    base = load_model(model.base_files(), model.trust_remote_code)
    try:
        return PeftModel.from_pretrained(base, model.path).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the adapter {model.path} cannot be put onto {model.base} ({reason})",
            "name the model that it was trained on: --base MODEL",
        ) from None


class Transformers:
    """generate() of transformers.

    Args:
        adapter: False leaves a PEFT model's adapter out.
        stops: what the adapter's generation_config.json ends an answer with; PEFT reads the base model's alone.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, adapter: bool = True, stops: Sequence[int] = ()):
        self.model, self.tokenizer, self.batch_size, self.adapter = model, tokenizer, batch_size, adapter
        self.stops = stops

    @contextlib.contextmanager
    def ready(self) -> Iterator[Any]:
        """The model, with or without its adapter, and no gradients."""
        import torch

        with torch.inference_mode(), contextlib.nullcontext() if self.adapter else self.model.disable_adapter():
            yield self.model

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, done: Done) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding
        found: dict[int, list[int]] = {}
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            found |= zip(chosen, self._generated([prompts[index] for index in chosen], sampling, None), strict=True)
            done(len(chosen))
        return [found[index] for index in range(len(prompts))]

    def stream(self, prompt: list[int], sampling: Sampling, streamer: Any) -> list[int]:
        """One answer, word by word to a transformers streamer."""
        return self._generated([prompt], sampling, streamer)[0]

    def _generated(self, prompts: list[list[int]], sampling: Sampling, streamer: Any) -> list[list[int]]:
        import torch

        longest, device = max(map(len, prompts)), self.model.device
        padding = self.tokenizer.pad_token_id
        padding = self.tokenizer.eos_token_id if padding is None else padding
        ids = torch.tensor([[padding] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        ends = self._ends()
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        torch.manual_seed(sampling.seed)
        with self.ready() as model:
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=padding,
                streamer=streamer,
                **(drawn if sampling.temperature > 0 else greedy),
            )
        return [_until(tokens, set(ends)) for tokens in output[:, longest:].tolist()]

    def _ends(self) -> list[int]:
        """Tokens that end an answer: as the generation_config.json of model and adapter say, and the tokenizer."""
        own = getattr(self.model.generation_config, "eos_token_id", None)
        own = own if isinstance(own, list) else [own]
        ends = dict.fromkeys([*own, *self.stops, self.tokenizer.eos_token_id])
        return [token for token in ends if token is not None]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    return tokens[: next((index for index, token in enumerate(tokens) if token in ends), len(tokens))]


class VLLM:
    """A vLLM engine; an adapter is a LoRA request to it."""

    def __init__(self, llm: Any, adapter: Any = None, stops: Sequence[int] = ()):
        self.llm, self.adapter, self.stops = llm, adapter, list(stops)

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, done: Done) -> list[list[int]]:
        from vllm import SamplingParams  # type: ignore[import-not-found]

        settings = SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop_token_ids=self.stops,
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(asked, settings, lora_request=self.adapter)
        done(len(prompts))
        ends = set(self.llm.get_tokenizer().all_special_ids)
        return [_until(list(output.outputs[0].token_ids), ends) for output in outputs]


def _open_vllm(model: TunedModel, compare: bool) -> dict[str, Engine]:
    from vllm import LLM  # type: ignore[import-not-found]

    settings: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if not model.adapter:
        paths = {**({BASE: model.base_files()} if compare else {}), TUNED: model.path}
        share = 0.9 / len(paths)
        return {name: VLLM(LLM(path, gpu_memory_utilization=share, **settings)) for name, path in paths.items()}
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

    rank = max_lora_rank(adapter_config(model)["r"])
    llm = LLM(model.base_files(), enable_lora=True, max_lora_rank=rank, **settings)
    tuned = VLLM(llm, LoRARequest("tuned", 1, model.path), stop_tokens(Path(model.path)))
    return {BASE: VLLM(llm), TUNED: tuned} if compare else {TUNED: tuned}

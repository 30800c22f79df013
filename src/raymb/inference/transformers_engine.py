"""transformers as an engine, on a CPU, a GPU, or layer by layer over several."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import Any

from raymb.errors import ModelError
from raymb.export.hf_model import load_hf_model
from raymb.inference.engine import TUNED, Done, Engine, EngineSettings, Sampling, ends_of, until, weights_of
from raymb.inference.tuned_model import TunedModel
from raymb.model.remote_code import hint_for


@contextlib.contextmanager
def opened_transformers(
    model: TunedModel, names: Sequence[str], tokenizer: Any, settings: EngineSettings
) -> Iterator[dict[str, Engine]]:
    """Engines on one model in memory, which is freed at the end.

    Args:
        names: of BASE and TUNED; both share the model of an adapter.
    """
    loaded = _load_adapter(model, settings.gpus) if model.adapter else load_model(model, names[0], settings.gpus)
    engines = {
        name: Transformers(
            loaded, tokenizer, settings.batch_size, ends_of(model, name, tokenizer), adapter=name == TUNED
        )
        for name in names
    }
    del loaded
    try:
        yield dict(engines)
    finally:
        for engine in engines.values():  # whoever still has the engine does not keep the model
            del engine.model
        _give_memory_back()


def load_model(model: TunedModel, name: str, gpus: int) -> Any:
    """A causal language model, in fp32 on a CPU (bf16 is slow on many), else in its own type."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    path = weights_of(model, name)
    try:
        free = [torch.cuda.mem_get_info(index)[0] for index in range(gpus)]
        dtype = "auto" if gpus else torch.float32
        loaded = load_hf_model(path, trust_remote_code=model.trust_remote_code, dtype=dtype, **placement(free))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be loaded ({' '.join(str(error).split())[:300]})", hint_for(error)) from None
    return loaded.eval()


def placement(free: Sequence[int]) -> dict[str, Any]:
    """Where transformers puts a model: its settings for that many GPUs, none for the CPU. No layer goes to the CPU or a
    disk instead, where it would take a hundred times as long: a model that does not fit is an error.

    Args:
        free: bytes of each GPU.
    """
    if len(free) < 2:
        return {"device_map": {"": 0}} if free else {}
    return {"device_map": "auto", "max_memory": dict(enumerate(free))}


def _load_adapter(model: TunedModel, gpus: int) -> Any:
    from peft import PeftModel

    base = load_model(model, TUNED, gpus)
    try:
        return PeftModel.from_pretrained(base, model.path).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the adapter {model.path} cannot be put onto {model.base} ({reason})",
            "name the model that it was trained on: --base MODEL",
        ) from None


def _give_memory_back() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # vLLM looks at what the driver says is free


class Transformers:
    """generate() of transformers.

    Args:
        ends: tokens that end an answer.
        adapter: False leaves a PEFT model's adapter out.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, ends: list[int], adapter: bool = True):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.ends, self.adapter = ends, adapter
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.padding = next(token for token in known if token is not None)

    @contextlib.contextmanager
    def ready(self) -> Iterator[Any]:
        """The model, with or without its adapter, and no gradients. Of its generation_config.json nothing is left but
        the tokens that end an answer: generate() would take a repetition penalty from it even where it draws none."""
        import torch
        from transformers import GenerationConfig

        self.model.generation_config = GenerationConfig(eos_token_id=self.ends or None, pad_token_id=self.padding)
        with_adapter = self.adapter or not hasattr(self.model, "disable_adapter")
        with torch.inference_mode(), contextlib.nullcontext() if with_adapter else self.model.disable_adapter():
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
        ids = torch.tensor([[self.padding] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        torch.manual_seed(sampling.seed)
        with self.ready() as model:
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=sampling.max_new_tokens,
                streamer=streamer,
                **(drawn if sampling.temperature else {"do_sample": False}),
            )
        return [until(tokens, self.ends) for tokens in output[:, longest:].tolist()]

"""vLLM as an engine. An adapter is a LoRA request to the engine of its base."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from raymb.errors import SpecError
from raymb.export.serving import max_lora_rank
from raymb.inference.choice import adapter_config
from raymb.inference.engine import TUNED, Done, Engine, EngineSettings, Sampling, ends_of, until, weights_of
from raymb.inference.tuned_model import TunedModel

_GPU_MEMORY = 0.92
"""Of each GPU, for weights and cache: vLLM's own default."""


@contextlib.contextmanager
def opened_vllm(
    model: TunedModel, names: Sequence[str], tokenizer: Any, settings: EngineSettings, share: float = 1.0
) -> Iterator[dict[str, Engine]]:
    """Engines on one vLLM, whose GPU memory is free at the end.

    Args:
        names: of BASE and TUNED; both share the engine of an adapter.
        share: of vLLM's GPU memory, where others are open beside it.
    """
    from vllm import LLM  # type: ignore[import-not-found]
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory  # type: ignore[import-not-found]

    llm = LLM(**llm_arguments(model, names, settings.gpus, share))
    engines = {
        name: VLLM(llm, ends_of(model, name, tokenizer), _lora_request(model) if name == TUNED else None)
        for name in names
    }
    try:
        yield dict(engines)
    finally:
        for engine in engines.values():
            del engine.llm
        llm.llm_engine.engine_core.shutdown()  # the process that has the weights; LLM has no close() of its own
        del llm
        cleanup_dist_env_and_memory()


def llm_arguments(model: TunedModel, names: Sequence[str], gpus: int, share: float) -> dict[str, Any]:
    """What vLLM's LLM is made with."""
    adapter = {"enable_lora": True, "max_lora_rank": max_lora_rank(adapter_config(model)["r"])} if model.adapter else {}
    return {
        "model": weights_of(model, names[0]),
        "trust_remote_code": model.trust_remote_code,
        "tensor_parallel_size": max(gpus, 1),
        "gpu_memory_utilization": _GPU_MEMORY * share,
        # As long as the cache has room for: with the 131,072 positions that many models have, vLLM would not start.
        "max_model_len": -1,
        **adapter,
    }


def _lora_request(model: TunedModel) -> Any:
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

    return LoRARequest("tuned", 1, model.path) if model.adapter else None


class VLLM:
    """
    Args:
        ends: tokens that end an answer.
        adapter: a LoRARequest.
    """

    def __init__(self, llm: Any, ends: list[int], adapter: Any = None):
        self.llm, self.ends, self.adapter = llm, ends, adapter

    def generate(self, prompts: Sequence[list[int]], sampling: Sampling, done: Done) -> list[list[int]]:
        from vllm import SamplingParams  # type: ignore[import-not-found]

        longest, room = max(map(len, prompts)), self.llm.model_config.max_model_len
        if longest >= room:
            raise SpecError(
                f"a prompt has {longest:,} tokens, and vLLM has room for {room:,} with the answer: "
                "the model's positions, or what the GPU memory holds",
                "shorten it, give more GPUs (--num_gpus), or add --engine transformers",
            )
        settings = SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop_token_ids=self.ends,
            ignore_eos=True,  # else vLLM adds ends of its own, of the base alone
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(asked, settings, lora_request=self.adapter)
        done(len(prompts))
        return [until(list(output.outputs[0].token_ids), self.ends) for output in outputs]

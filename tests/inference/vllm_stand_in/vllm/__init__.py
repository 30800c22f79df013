"""What raymb uses of vLLM 0.26.0, computed by transformers on a CPU. It refuses what that version does, in its words.

Each refusal names the file of vLLM that it is in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GPUS = 4
OPEN: list[LLM] = []
"""Engines that hold GPU memory."""
LOADED: list[dict[str, Any]] = []
"""What each LLM was made with, since the tests began."""
ARGUMENTS = """
model trust_remote_code tensor_parallel_size dtype quantization revision tokenizer tokenizer_revision seed
gpu_memory_utilization enforce_eager hf_token hf_overrides max_model_len enable_lora max_loras max_lora_rank
max_num_seqs enable_prefix_caching generation_config disable_log_stats
"""
"""Some of LLM's (entrypoints/llm.py) and of EngineArgs' (engine/arg_utils.py), which takes LLM's other keywords."""
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # config/lora.py
CACHE = 400
"""Tokens that the GPUs have room for: max_model_len=-1 takes no more."""


@dataclass
class SamplingParams:
    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False


class LLM:
    def __init__(self, model: str, **settings: Any):
        from transformers import AutoModelForCausalLM

        if unknown := settings.keys() - set(ARGUMENTS.split()):
            raise TypeError(f"EngineArgs.__init__() got an unexpected keyword argument '{min(unknown)}'")
        config = json.loads(Path(model, "config.json").read_text())
        _check_parallel(config, settings.get("tensor_parallel_size", 1))
        if settings.get("max_lora_rank", 16) not in MAX_LORA_RANKS:
            raise ValueError(f"1 validation error for LoRAConfig: max_lora_rank {settings['max_lora_rank']}")
        self.memory = settings.get("gpu_memory_utilization", 0.92)
        free = 1 - sum(one.memory for one in OPEN)
        if free < self.memory:  # v1/worker/utils.py
            raise ValueError(f"Free memory on device ({free:.2f}) is less than desired GPU memory utilization")
        self.lora_rank = settings.get("max_lora_rank", 16) if settings.get("enable_lora") else 0
        self.model_config = SimpleNamespace(max_model_len=_length(settings.get("max_model_len"), config))
        self.stops = _own_stops(Path(model))
        self.network: Any = AutoModelForCausalLM.from_pretrained(model).eval()
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shutdown))
        OPEN.append(self)
        LOADED.append({"model": model, **settings})

    def _shutdown(self) -> None:
        OPEN.remove(self)
        self.network = None

    def generate(self, prompts: list[Any], sampling_params: SamplingParams, *, lora_request: Any = None) -> list[Any]:
        if self.network is None:
            raise RuntimeError("EngineCore encountered an issue.")  # v1/engine/exceptions.py
        for prompt in prompts:
            _check_length(len(prompt["prompt_token_ids"]), self.model_config.max_model_len)
        network = self._with(lora_request) if lora_request is not None else self.network
        answers = [self._answer(network, prompt["prompt_token_ids"], sampling_params) for prompt in prompts]
        if lora_request is not None:
            network.unload()
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=one)]) for one in answers]

    def _with(self, lora_request: Any) -> Any:
        from peft import PeftModel

        if not self.lora_rank:  # v1/engine/input_processor.py
            raise ValueError(f"Got lora_request {lora_request} but LoRA is not enabled!")
        _check_adapter(json.loads(Path(lora_request.lora_path, "adapter_config.json").read_text()), self.lora_rank)
        return PeftModel.from_pretrained(self.network, lora_request.lora_path).eval()

    def _answer(self, network: Any, prompt: list[int], settings: SamplingParams) -> list[int]:
        """The likeliest tokens with the one that ends them (v1/core/sched/utils.py)."""
        import torch

        assert settings.temperature == 0, "this stand-in draws nothing"
        stops = {*settings.stop_token_ids, *(() if settings.ignore_eos else self.stops)}
        answer: list[int] = []
        while len(answer) < (settings.max_tokens or 16) and len(prompt) + len(answer) < self.model_config.max_model_len:
            with torch.no_grad():
                answer.append(int(network(torch.tensor([[*prompt, *answer]])).logits[0, -1].argmax()))
            if answer[-1] in stops:
                break
        return answer


def _check_parallel(config: dict[str, Any], size: int) -> None:
    if size > GPUS:
        raise ValueError(f"World size ({size}) is larger than the number of available GPUs ({GPUS}) in this node.")
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % size:  # config/model.py
        raise ValueError(
            f"Total number of attention heads ({heads}) must be divisible by tensor parallel size ({size})."
        )
    for numerator, denominator in (
        (max(size, groups), min(size, groups)),
        (config["intermediate_size"], size),
    ):  # model_executor/layers/linear.py
        assert numerator % denominator == 0, f"{numerator} is not divisible by {denominator}"


def _length(asked: int | None, config: dict[str, Any]) -> int:
    positions = config["max_position_embeddings"]
    if asked == -1:
        return min(positions, CACHE)
    if asked is not None and asked > positions:  # config/model.py
        raise ValueError(
            f"User-specified max_model_len ({asked}) is greater than the derived max_model_len ({positions})"
        )
    if (asked or positions) > CACHE:  # v1/core/kv_cache_utils.py
        raise ValueError(f"To serve at least one request with the models's max seq len ({asked or positions}), ...")
    return asked or positions


def _check_length(length: int, room: int) -> None:  # v1/engine/input_processor.py
    if length == 0:
        raise ValueError("The decoder prompt cannot be empty")
    if length > room:
        raise ValueError(f"The decoder prompt (length {length}) is longer than the maximum model length of {room}.")
    if length == room:
        raise ValueError(
            f"The decoder prompt (length {length}) plus the number of requested output tokens (at least 1) is longer "
            f"than the maximum model length of {room}."
        )


def _check_adapter(config: dict[str, Any], largest: int) -> None:  # lora/peft_helper.py
    problems = []
    if config.get("modules_to_save"):
        problems.append("vLLM only supports modules_to_save being None.")
    if config.get("use_dora"):
        problems.append("vLLM does not yet support DoRA.")
    if config["r"] > largest:
        problems.append(f"LoRA rank {config['r']} is greater than max_lora_rank {largest}.")
    if config.get("bias", "none") != "none":
        problems.append("Adapter bias is not supported.")
    if problems:
        raise ValueError(" ".join(problems))


def _own_stops(model: Path) -> set[int]:
    """What vLLM ends an answer with by itself (sampling_params.py): the model's settings, none of an adapter's."""
    from transformers import AutoTokenizer

    file = model / "generation_config.json"
    said = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
    said = said if isinstance(said, list) else [said]
    return {token for token in (*said, AutoTokenizer.from_pretrained(model).eos_token_id) if token is not None}

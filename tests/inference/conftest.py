"""Models to ask, and a vLLM that needs no GPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

VLLM = Path(__file__).parent / "vllm_stand_in"


@pytest.fixture(scope="session")
def adapter(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT directory for tiny_qwen2, of rank 2."""
    return make_adapter(tiny_qwen2, tmp_path_factory.mktemp("adapter") / "adapter")


def make_adapter(base: Path, directory: Path, rank: int = 2, **config: Any) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": rank, "target_modules": ["q_proj", "down_proj"], **config}
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tuned.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def other_weights(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_qwen2 as a full fine-tuning would leave it: other weights, all else alike."""
    import torch
    from transformers import AutoModelForCausalLM

    directory = shutil.copytree(tiny_qwen2, tmp_path_factory.mktemp("tuned") / "hf")
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in as the installed vLLM; nothing may hold GPU memory at the end."""
    monkeypatch.syspath_prepend(str(VLLM))
    import vllm
    import vllm.distributed.parallel_state

    yield vllm
    left = len(vllm.OPEN)
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[name]
    assert not left, "an engine still holds its GPU memory"

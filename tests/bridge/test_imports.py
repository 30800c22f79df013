"""What a CPU worker imports of Megatron-Bridge, and what it leaves out. One process imports; the tests ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCES = Path(__file__).parents[2] / "src"
LEFT_OUT = [
    "diffusers",
    "wandb",
    "mlflow",
    "pandas",
    "scipy",
    "sympy",
    "torch._inductor",
    "megatron.energon",
    "modelopt",
    "datasets",
    "nvidia_resiliency_ext",
]
CPU_SECONDS = 20  # about 5 on two cores; 24 without the remedies

# The order is the worker's (raymb.worker.prepare).
SCRIPT = f"""
import importlib.util, json, sys, time
from raymb import cpu
from raymb.cpu import stand_in
from raymb.bridge.patches import imports

imports.install()
imports.install()
cpu.activate()
imports.load_family("Qwen2ForCausalLM")
import megatron.bridge.training.pretrain
seconds = time.process_time()

import megatron.bridge.models as models
from megatron.bridge.models.conversion.auto_bridge import AutoBridge

loaded = sys.modules
answer = dict(
    seconds=seconds,
    transformer_engine=loaded["transformer_engine"].__file__,
    really_imported=[
        name for name in {LEFT_OUT}
        if loaded.get(name) is not None and not isinstance(loaded[name], stand_in.StandIn)
    ],
    stand_ins=[name for name in {LEFT_OUT} if isinstance(loaded.get(name), stand_in.StandIn)],
    found=[name for name in ("wandb", "scipy", "mlflow") if importlib.util.find_spec(name)],
    lazy_before="T5GemmaModel" in vars(models) or "GemmaModelProvider" in vars(models),
    provider=models.GPTModelProvider.__name__,
    finders=sum(type(finder).__name__ == "_LeanFinder" for finder in sys.meta_path),
    after_qwen2=AutoBridge.list_supported_models(),
)
try:
    models.NoSuchName
except AttributeError as error:
    answer["unknown_name"] = str(error)
imports.load_family("LlamaForCausalLM")
answer["after_llama"] = AutoBridge.list_supported_models()
imports.load_family("NoSuchForCausalLM")
answer["after_unknown"] = AutoBridge.list_supported_models()
print("\\n" + json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_imports_are_cheap(answer: dict[str, Any]) -> None:
    print(f"{answer['seconds']:.1f} CPU seconds")
    assert answer["seconds"] < CPU_SECONDS


def test_unused_packages_are_left_out(answer: dict[str, Any]) -> None:
    assert answer["really_imported"] == []
    assert answer["found"] == []
    assert "raymb/cpu/packages" in answer["transformer_engine"]
    assert {"megatron.energon", "modelopt"} <= set(answer["stand_ins"])


def test_names_of_lazy_packages_come_when_they_are_asked_for(answer: dict[str, Any]) -> None:
    assert not answer["lazy_before"]
    assert answer["provider"] == "GPTModelProvider"
    assert answer["unknown_name"] == "module 'megatron.bridge.models' has no attribute 'NoSuchName'"


def test_family_is_known_after_it_was_loaded(answer: dict[str, Any]) -> None:
    assert "Qwen2ForCausalLM" in answer["after_qwen2"] and "LlamaForCausalLM" not in answer["after_qwen2"]
    assert {"Qwen2ForCausalLM", "LlamaForCausalLM"} <= set(answer["after_llama"])


def test_unknown_architecture_loads_every_family(answer: dict[str, Any]) -> None:
    assert len(answer["after_unknown"]) > 30
    assert {"GemmaForCausalLM", "DeepseekV3ForCausalLM"} <= set(answer["after_unknown"])


def test_install_is_idempotent(answer: dict[str, Any]) -> None:
    assert answer["finders"] == 1

"""What Bridge loads, as read from its sources, against Bridge's own registry; and who is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import QWEN2_4_LAYERS, QWEN3_MOE_4_LAYERS, write_shape_only_model
from tests.families import FAMILIES as TESTED
from tests.families import architecture

from raymb.cli import main
from raymb.model.architectures import of_text, registered, support
from raymb.model.families import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
REGISTRY = """
from raymb.rank.accelerator import ACCELERATORS
ACCELERATORS["cpu"].activate()
from megatron.bridge import AutoBridge
print("REGISTERED", *AutoBridge.list_supported_models())
"""
MIXTRAL = QWEN3_MOE_4_LAYERS | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_layer": 2,
    "n_embd": 64,
    "n_head": 4,
    "vocab_size": 99,
}


@pytest.mark.slow
def test_the_list_is_bridges_own() -> None:
    words = [sys.executable, "-c", REGISTRY]
    output = subprocess.run(words, capture_output=True, text=True, check=True, timeout=280).stdout
    found = next(line.split()[1:] for line in output.splitlines() if line.startswith("REGISTERED "))
    diffusion = {name for name in found if name.endswith("DiffusionModel")}  # registered outside of bridge/models
    assert set(found) - diffusion == registered()


def test_every_family_is_registered_and_proven_where_the_docs_say_so() -> None:
    of_records = {name for one in FAMILIES for name in one.architectures}
    assert of_records <= registered()
    on_cpus = {name for one in FAMILIES if "CPU" in one.proven and not one.vision for name in one.architectures}
    assert on_cpus == {architecture(name) for name in TESTED}
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    rows = text.partition("Tiny models of all families")[2].partition("In bf16")[0].splitlines()
    on_gpus = {re.split(r"[,|]", row)[1].strip() for row in rows if row.startswith("|")}
    on_gpus = {"Llama" if name == "Llama 3" else name for name in on_gpus}
    assert {one.name for one in FAMILIES if "GPU" in one.proven} == on_gpus - {"family", "---"}
    experts = {name for name in TESTED if "experts" in json.dumps(TESTED[name])}
    assert {architecture(name) for name in experts} == {
        name for one in FAMILIES if one.experts and one.proven for name in one.architectures
    }


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:]} == registered() and len(lines) > 50
    assert main(["models", "olmoe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "architecture": "OlmoeForCausalLM",
            "kind": "text",
            "layouts": "PP CP EP ETP",
            "packing": "yes",
            "lora": "all",
            "proven": "CPU, GPU",
        }
    ]
    assert support("Gemma2ForCausalLM")["packing"] == "no"
    assert support("FalconH1ForCausalLM") == {
        "kind": "text",
        "layouts": "TP PP CP",
        "packing": "no",
        "lora": "all but states",
        "proven": "CPU",
    }
    assert support("NemotronHForCausalLM")["lora"] == "attention"
    assert support("Qwen3VLForConditionalGeneration")["proven"] == "refused"
    assert not of_text("Qwen3VLForConditionalGeneration")
    assert main(["models", "nonsense"]) == 2


def test_it_imports_no_framework() -> None:
    code = "import sys; from raymb.cli import main; main(['models']); print({'torch', 'megatron'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()"


@pytest.mark.parametrize("command", [["plan"], ["data", "prepare"], ["finetune", "--dry_run"], ["submit", "slurm"]])
@pytest.mark.parametrize(
    ("config", "nearest", "tried"),
    [
        (
            MIXTRAL,
            "MistralForCausalLM",
            "models with experts that were tried are Qwen3MoeForCausalLM, OlmoeForCausalLM",
        ),
        (GPT2, "", "models without experts that were tried are Qwen2ForCausalLM"),
        (QWEN2_4_LAYERS | {"architectures": ["Phi3ForCausalLM"]}, "", "all: raymb models"),
    ],
    ids=["Mixtral", "GPT-2", "Phi-3"],
)
def test_what_bridge_has_not_is_refused(
    command: list[str],
    config: dict[str, Any],
    nearest: str,
    tried: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_shape_only_model(tmp_path / "model", config)
    words = [*command, "--hf_model_path", str(model), "--storage_path", str(tmp_path / "runs"), "--dataset", "sample"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert f"has no {config['architectures'][0]}; the nearest name that it has is {nearest}" in error
    assert tried in error and "Traceback" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]

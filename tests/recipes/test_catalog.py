"""What is known of recipes without importing Bridge, and how their values meet those of YAML and flags."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from raymb.cli import main
from raymb.errors import SpecError
from raymb.recipes import catalog, find
from raymb.recipes.catalog import name_parts
from raymb.spec import load_spec


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("qwen25_500m_sft_1gpu_h100_bf16_config", ("sft", 1, "h100")),
        ("qwen25_500m_sft_config", ("sft", None, "")),
        ("llama31_405b_peft_32gpu_h100_bf16_config", ("lora", 32, "h100")),
        ("glm52_pretrain_192gpu_gb200_bf16_config", ("pretrain", 192, "gb200")),
        ("gpt_oss_20b_sft_8gpu_h100_bf16_openmathinstruct2_thinking_packed_config", ("sft", 8, "h100")),
        ("some_model_config", ("", None, "")),
    ],
)
def test_names_say_mode_and_gpus(name, parts):
    assert name_parts(name) == parts


def test_every_function_in_the_sources_is_listed():
    megatron = find_spec("megatron")
    assert megatron is not None and megatron.submodule_search_locations
    root = Path(megatron.submodule_search_locations[0], "bridge", "recipes")
    families = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in ("utils", "__pycache__")]
    texts = [file.read_text() for folder in families for file in folder.rglob("*.py")]
    defined = {name for text in texts for name in re.findall(r"^def ([a-z]\w*_config)\(", text, re.MULTILINE)}
    assert defined == set(catalog()) and len(defined) > 100
    assert {recipe.family for recipe in catalog().values()} == {folder.name for folder in families}
    assert {recipe.mode for recipe in catalog().values()} == {"sft", "lora", "pretrain"}


def test_an_older_name_is_the_same_recipe_and_a_mistyped_one_is_answered():
    assert find("qwen25_500m_sft_config") == find("qwen25_500m_sft_1gpu_h100_bf16_config")
    assert find("llama3_70b_64k_pretrain_config").layout == "TP8 PP4 CP8"
    with pytest.raises(SpecError, match="did you mean qwen25_500m_sft_config"):
        find("qwen25_500_sft_config")


def test_list_shows_one_family_without_importing_a_framework():
    code = "import sys; from raymb.cli import main; main(); print({'torch', 'megatron'} & set(sys.modules))"
    words = [sys.executable, "-c", code, "recipes", "list", "llama", "--mode", "sft", "--json"]
    *_, listed, imported = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    recipes = {recipe["name"]: recipe for recipe in json.loads(listed)}
    assert imported == "set()"
    assert {recipe["mode"] for recipe in recipes.values()} == {"sft"}
    assert recipes["llama31_70b_sft_32gpu_h100_bf16_config"]["gpus"] == 32


def test_recipe_is_below_yaml_and_flags(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: {recipe: some}\noptimizer: {learning_rate: 2.0}\noverrides: {train.manual_gc: false}\n")
    asked = []

    def recipe(name, given):
        asked.append((name, given["train"]["seed"]))
        return {
            "model": {"hf_model_path": "of/recipe"},
            "train": {"seed": 5678, "global_batch_size": 128},
            "optimizer": {"learning_rate": 1.0, "weight_decay": 0.5},
            "overrides": {"train.manual_gc": True, "train.manual_gc_interval": 7},
        }

    spec = load_spec({"seed": "3"}, [file], ["train.manual_gc_eval=9"], recipe=recipe)
    assert asked == [("some", "3")]
    assert (spec.model.hf_model_path, spec.model.recipe) == ("of/recipe", None)  # resolved: not read again on a resume
    assert (spec.train.seed, spec.train.global_batch_size) == (3, 128)
    assert (spec.optimizer.learning_rate, spec.optimizer.weight_decay) == (2.0, 0.5)
    assert spec.overrides == {"train.manual_gc": False, "train.manual_gc_interval": 7, "train.manual_gc_eval": 9}
    with pytest.raises(SpecError, match="raymb recipes show some"):
        load_spec({}, [file])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finetune", "--recipe", "qwen25_500_sft"], "did you mean"),
        (["finetune", "--recipe", "flux_12b_sft_config"], "makes pictures"),
        (["finetune", "--recipe", "minimax_m3_sft_config"], "the language part of a model with images"),
        (["recipes", "show", "nonsense"], "no recipe of this name"),
        (["recipes", "list", "nonsense"], "no recipe of nonsense"),
        (["recipes", "list", "--mode", "rl"], "sft, lora or pretrain"),
    ],
)
def test_mistakes_are_answered_at_once(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error

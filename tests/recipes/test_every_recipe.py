"""Every recipe of the installed Bridge, run for real in a process without network: what it says becomes a RunSpec."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymb.cli import main
from raymb.errors import SpecError
from raymb.recipes import catalog, values_below
from raymb.recipes.catalog import LAYOUT
from raymb.recipes.fields import check_overrides
from raymb.recipes.translate import TEXT, translate
from raymb.spec import load_spec, worker_range

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
REFUSED = {
    "minimax_m3_pretrain_256gpu_h100_bf16_config": "language part of a model with images",
    "minimax_m3_sft_128gpu_h100_bf16_config": "language part of a model with images",
    "qwen35_text_35b_a3b_pretrain_8gpu_gb200_bf16_config": "language part of a model with images",
    "qwen35_text_9b_pretrain_8gpu_gb200_bf16_config": "language part of a model with images",
    "qwen3_next_80b_a3b_peft_1gpu_h100_bf16_config": "Bridge refuses it: NotImplementedError: PEFT",
}
"""Recipes of text, and why raymb does not take them."""
DIFFUSION = ("flux", "wan")


@pytest.fixture(scope="module")
def everything() -> dict[str, Any]:
    words = [sys.executable, "-m", "tests.recipes.read_all"]
    environment = {"PATH": "", "PYTHONPATH": ":".join(map(str, (HERE.parents[1] / "src", HERE.parents[1])))}
    environment |= {"HF_HUB_OFFLINE": "1", "HOME": str(HERE)}
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment, cwd=HERE.parents[1])
    return json.loads(done.stdout.splitlines()[-1])


def test_the_list_is_complete(everything):
    listed = [recipe for recipe in catalog().values() if recipe.family not in DIFFUSION]
    assert {name for recipe in listed for name in (recipe.name, *recipe.older_names)} == set(everything["functions"])


def test_every_recipe_of_text_becomes_a_spec(everything):
    unread = {name for name, found in everything["recipes"].items() if "error" in found}
    assert {name for name in unread if catalog()[name].family not in DIFFUSION} == set(REFUSED)
    read = 0
    for name in everything["recipes"].keys() - unread:
        recipe, found = catalog()[name], everything["recipes"][name]
        values = {field: found["values"].get(f"model.{field}") or 1 for field in LAYOUT}
        assert {field: recipe.sizes.get(field, 1) for field in LAYOUT} == values, name
        if found["dataset"]["kind"] in TEXT:
            sections = translate(recipe, found).sections
            flags = {} if "hf_model_path" in sections.get("model", {}) else {"hf_model_path": "some/model"}
            spec = load_spec({**flags, "recipe": name}, recipe=lambda _, given, sections=sections: sections)
            check_overrides(spec.overrides)
            assert spec.parallel.tensor_parallel_size == values["tensor_model_parallel_size"]
            assert spec.train.global_batch_size == found["values"]["train.global_batch_size"]
            assert (spec.peft.peft == "none") == (recipe.mode != "lora"), name
            read += 1
    assert read > 200


@pytest.mark.parametrize("name", ["qwen25_500m_sft_config", "llama3_70b_peft_config"])
def test_what_show_prints_is_the_recipe(name, tmp_path, capsys):
    assert main(["recipes", "show", name]) == 0
    file = tmp_path / "recipe.yaml"
    file.write_text(capsys.readouterr().out)
    shown = load_spec({"num_workers": "16"}, [file])
    assert shown == load_spec({"num_workers": "16", "recipe": name}, recipe=values_below)
    assert yaml.safe_load(file.read_text())["model"]["hf_model_path"] == shown.model.hf_model_path
    assert "left out: tokenizer" in file.read_text()


def test_flags_may_contradict_a_recipe():
    spec = load_spec({"recipe": "qwen3_1p7b_peft_config", "peft": "dora", "num_epochs": "2"}, recipe=values_below)
    assert (spec.peft.peft, spec.train.num_epochs, spec.train.train_iters) == ("dora", 2.0, None)
    assert spec.parallel.num_workers == 1
    spec = load_spec({"recipe": "qwen3_1p7b_peft_config", "data_parallel_size": "2"}, recipe=values_below)
    assert (spec.parallel.num_workers, worker_range(spec.parallel)) == ("auto", (2, 2))
    scratch = load_spec({"recipe": "qwen25_500m_pretrain_config"}, recipe=values_below)
    assert (scratch.model.init, scratch.peft.peft) == ("random", "none")
    tuned = load_spec({"recipe": "qwen25_500m_pretrain_config", "peft": "lora"}, recipe=values_below)
    assert (tuned.model.init, tuned.peft.peft) == ("pretrained", "lora")


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_a_refusal_says_why(name: str, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        load_spec({"recipe": name}, recipe=values_below)

"""A recipe by name as values for the RunSpec. Its module is imported by a process of its own, alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymb.errors import SpecError
from raymb.model.vision import TEXT_STEP, known_families, step_of_recipe
from raymb.recipes.catalog import Recipe, find
from raymb.recipes.translate import TEXT, Translation, translate
from raymb.runtime.child import Child

_PART = (
    "it trains the language part of a model with images, which Bridge cuts out of the model's config.json, and raymb "
    "trains whole models"
)
_REFUSED = {
    "flux": "it makes pictures, and raymb trains language models",
    "wan": "it makes films, and raymb trains language models",
    "minimax_m3": _PART,
    "qwen35_text": _PART,
}
"""Beginnings of recipes' names, and why they are no runs of raymb."""


@dataclass(frozen=True)
class ResolvedRecipe:
    """
    Args:
        step: forward step of its models, "" where raymb cannot train them.
    """

    recipe: Recipe
    translation: Translation
    step: str


def resolve_recipe(name: str, scheme: str | None = None) -> ResolvedRecipe:
    """
    Args:
        scheme: lora or dora, for a recipe that asks which.

    Raises:
        SpecError: there is no such recipe, or it cannot be read.
    """
    recipe = find(name)
    if why := next((why for begin, why in _REFUSED.items() if recipe.name.startswith(begin)), ""):
        raise SpecError(f"--recipe {name}: {why}", "take another of raymb recipes list")
    asked = {"module": recipe.module, "function": recipe.name, "scheme": scheme}
    child = Child("raymb.bridge.recipe", {"CUDA_VISIBLE_DEVICES": ""})
    found, errors = child.result(json.dumps(asked), lambda: None)
    if found is None or "error" in found:
        reason = found["error"] if found else (errors.strip().splitlines() or ["its process ended"])[-1]
        told = (
            "Bridge refuses it" if reason.startswith("NotImplementedError") else "it cannot be read without its model"
        )
        raise SpecError(f"--recipe {name}: {told}: {reason}", "take another of raymb recipes list")
    text = found["dataset"]["kind"] in TEXT
    return ResolvedRecipe(recipe, translate(recipe, found), TEXT_STEP if text else step_of_recipe(recipe.module) or "")


def values_below(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe to merge YAML and flags over, for load_spec; says on standard error what is left out.

    Args:
        given: sections of YAML and flags. What contradicts one of them is not taken from the recipe.

    Raises:
        SpecError: no recipe, or one of a model that raymb does not train.
    """
    peft = given.get("peft", {}).get("peft")
    resolved = resolve_recipe(name, peft if peft in ("lora", "dora") else None)
    if not resolved.step:
        raise SpecError(f"--recipe {name}: of the families with images or sound raymb trains {known_families()} only")
    sections = {section: dict(values) for section, values in resolved.translation.sections.items()}
    if given.get("train", {}).get("num_epochs") is not None:
        sections["train"].pop("train_iters", None)
    if given.get("parallel", {}).get("data_parallel_size", "auto") != "auto":
        sections["parallel"].pop("num_workers", None)
    if peft == "none":
        sections["peft"] = {}
    elif peft is not None:
        sections["model"].pop("init", None)
    print(f"recipe {resolved.recipe.name}; left out:", file=sys.stderr)
    for line in resolved.translation.left_out:
        print(f"  {line}", file=sys.stderr)
    return sections

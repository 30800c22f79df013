"""Recipes of Megatron-Bridge: what it recommends for a model, as values of the RunSpec.

May import data, plan, model, spec and what is below them; a process of its own reads them out of Bridge.
"""

from raymb.recipes.catalog import Recipe, catalog, find
from raymb.recipes.resolve import ResolvedRecipe, resolve_recipe, values_below

__all__ = ["Recipe", "ResolvedRecipe", "catalog", "find", "resolve_recipe", "values_below"]

"""Recipes of Megatron-Bridge: what it recommends for a model, as values of the RunSpec."""

from raymb.recipes.catalog import Recipe, catalog, find
from raymb.recipes.resolve import Resolved, resolve, values_below

__all__ = ["Recipe", "Resolved", "catalog", "find", "resolve", "values_below"]

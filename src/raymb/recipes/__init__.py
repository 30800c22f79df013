"""Recipes of Megatron-Bridge: what it recommends for a model, as values of the RunSpec.

May import data, plan, model, spec and what is below them; a process of its own reads them out of Bridge.
"""

from raymb.recipes.catalog import Recipe, catalog, find
from raymb.recipes.resolve import Resolved, resolve, values_below

__all__ = ["Recipe", "Resolved", "catalog", "find", "resolve", "values_below"]

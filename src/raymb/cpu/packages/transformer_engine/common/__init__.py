"""transformer_engine.common: the names of FP8 recipes."""

from transformer_engine.common import recipe

__all__ = ["recipe"]

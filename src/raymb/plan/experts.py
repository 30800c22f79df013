"""Names of token dispatchers."""

FLEX = ("deepep", "hybridep")
"""Dispatchers with kernels of the package deep_ep."""

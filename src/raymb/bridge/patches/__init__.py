"""Upstream's defects that raymb steps around, a file a subject: each with its version and symbol, and a probe.

raymb.bridge.activation applies most of them; those that depend on the model or on the run are applied where these are
known (raymb.bridge.config, saving and adapters). tests/bridge/test_patches.py asks the probes.
"""

from __future__ import annotations

import importlib

from raymb.bridge.patches.patch import Patch

SUBJECTS = (
    "imports",
    "startup",
    "loaders",
    "models",
    "families",
    "routing",
    "hybrids",
    "positions",
    "attention",
    "fusions",
    "adapters",
    "low_rank",
    "adapter_norms",
    "gated_queries",
    "checkpoint_writing",
    "collectives",
    "weights",
)


def all_patches() -> list[Patch]:
    """Every patch; only where Megatron can be imported, whose classes some of them extend."""
    modules = [importlib.import_module(f"{__name__}.{subject}") for subject in SUBJECTS]
    return [patch for module in modules for patch in module.PATCHES]

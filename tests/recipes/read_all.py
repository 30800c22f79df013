"""Reads every recipe in one process, as raymb.bridge.recipe reads one, and prints {"recipes": {name: what it found, or
its error}, "functions": every name of a recipe in the modules that can be imported}."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import sys

from raymb.bridge import recipe as reader
from raymb.recipes import catalog


def main() -> None:
    reader.activate()
    found = {}
    for recipe in catalog().values():
        try:
            found[recipe.name] = reader.read(recipe.module, recipe.name, None)
        except Exception as error:
            found[recipe.name] = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps({"recipes": found, "functions": functions()}))


def functions() -> list[str]:
    package = importlib.import_module("megatron.bridge.recipes")
    names = set()
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=lambda name: None):
        family = module.name.split(".")[3]
        if module.ispkg or family in ("utils", "common", "run_plugins", "flux", "wan"):
            continue
        members = inspect.getmembers(importlib.import_module(module.name), inspect.isfunction)
        names |= {name for name, _ in members if name.endswith("_config") and not name.startswith(("_", "default_"))}
    return sorted(names - {"get_mixed_precision_config"})


if __name__ == "__main__":
    sys.exit(main())

"""Every rule of the package is in a list, and so is checked."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from raymb.plan import rules


def test_every_rule_is_listed_once() -> None:
    listed = [*rules.OF_LAYOUTS, *rules.OF_RUNS]
    assert len(set(listed)) == len(listed) and set(rules.OF_SIZES) < set(rules.OF_LAYOUTS)
    modules = [importlib.import_module(f"{rules.__name__}.{one.name}") for one in pkgutil.iter_modules(rules.__path__)]
    there = {
        rule
        for module in modules
        for name, rule in inspect.getmembers(module, inspect.isfunction)
        if rule.__module__ == module.__name__ and not name.startswith("_") and inspect.isgeneratorfunction(rule)
    }
    # These two are called by name: behind the others, where those find nothing.
    called = {rules.world.unfinished, rules.recompute.of_layout}
    assert there - called == set(listed)

"""A package that is not there, for importers that do not ask first.

A stand-in module has every submodule and every name; a name is a class that can be subclassed, annotated with and
tested by isinstance, and that raises when it is instantiated. Nothing here computes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Names(type):
    """Lets `package.ops.Sequential` be named too, in annotations and isinstance checks."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (Unavailable,), {"__module__": cls.__module__})


class Unavailable(metaclass=_Names):
    """Any class or function of an absent package: it can be named and subclassed, not instantiated or called."""

    def __init__(self, *args: Any, **kwargs: Any):
        raise RuntimeError(f"{type(self).__module__}.{type(self).__name__} belongs to a package left out of this run")


def unavailable(module: str, name: str) -> Any:
    """A name of an absent module."""
    return _Names(name, (Unavailable,), {"__module__": module})


class StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        stand_in = unavailable(self.__name__, name)
        setattr(self, name, stand_in)
        return stand_in


class StandInFinder(MetaPathFinder, Loader):
    """Answers imports of the given packages, and of everything below them, with stand-ins.

    Args:
        packages: dotted names; `megatron.energon` covers `megatron.energon.task_encoder.base`, too.
    """

    def __init__(self, packages: Sequence[str]):
        self.packages = tuple(packages)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if any(name == package or name.startswith(package + ".") for package in self.packages):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__version__ = "0.0.0"  # type: ignore[attr-defined]


def provide(*packages: str) -> None:
    """Make the packages importable as stand-ins from now on."""
    sys.meta_path.insert(0, StandInFinder(packages))


def hide(*names: str) -> None:
    """Make `import name` raise ModuleNotFoundError and find_spec(name) answer None."""
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = None  # type: ignore[assignment]


def show(*names: str) -> None:
    """Take hide() back."""
    for name in names:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]

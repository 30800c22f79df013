"""What a patch says of itself. Imports nothing of upstream: `imports` is a patch that comes before Megatron."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Patch:
    """
    Args:
        name: in a few words.
        package: on PyPI; version: the one that has the defect.
        symbol: MODULE, or MODULE:NAME, where the defect is.
        what_breaks: without the patch.
        probe: whether upstream still has the defect; to be asked in a process in which the patch is not applied.
        apply: what steps around it.
    """

    name: str
    package: str
    version: str
    symbol: str
    what_breaks: str
    probe: Callable[[], bool]
    apply: Callable[..., Any]


def upstream(symbol: str) -> Any:
    """The object that a symbol names."""
    module, _, names = symbol.partition(":")
    found = importlib.import_module(module)
    for name in filter(None, names.split(".")):
        found = getattr(found, name)
    return found


def text_of(symbol: str) -> str:
    """Its source, without regard to how lines are broken."""
    return " ".join(inspect.getsource(upstream(symbol)).split())


def bare(cls: type, **attributes: Any) -> Any:
    """A module of torch's of a class, without what its __init__ needs, for a probe of one of its methods."""
    from torch import nn

    module: Any = object.__new__(cls)
    nn.Module.__init__(module)
    for name, value in attributes.items():
        setattr(module, name, value)
    return module

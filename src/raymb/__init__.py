"""raymb: fine-tune a language model with Megatron-Bridge on Ray.

From Python: raymb.finetune, raymb.plan, raymb.Run, and the errors that they raise. Each is imported when it is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False  # typing's would cost more than all else here
if TYPE_CHECKING:
    from typing import Any

    from raymb.api import Planned, Run, RunInterrupted, finetune, plan
    from raymb.errors import RaymbError, RunFailed

__version__ = "0.1.0"

__all__ = ["Planned", "RaymbError", "Run", "RunFailed", "RunInterrupted", "__version__", "finetune", "plan"]


class _Module(ModuleType):
    def __reduce__(self) -> tuple[Any, ...]:
        """Ray pickles modules that a task's function names, and knows those of Python's own class only."""
        return import_module, (self.__name__,)


class _Raymb(_Module):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "plan" and isinstance(value, ModuleType):  # the import of raymb.plan, whoever asks for it first
            value.__class__ = _Plan
        super().__setattr__(name, value)


class _Plan(_Module):
    """The package raymb.plan, which is also the function raymb.plan: a package's name in its parent is Python's."""

    def __call__(self, **values: Any) -> Any:
        return import_module("raymb.api").plan(**values)


sys.modules[__name__].__class__ = _Raymb


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "plan":
        return import_module("raymb.plan")
    return getattr(import_module("raymb.errors" if name in ("RaymbError", "RunFailed") else "raymb.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

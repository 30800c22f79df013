"""The operation fuser (te.pytorch.ops) builds CUDA kernels: its names exist, for annotations only."""

from typing import Any

from raymb.cpu.stand_in import unavailable


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return unavailable(__name__, name)

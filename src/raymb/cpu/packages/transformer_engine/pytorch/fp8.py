"""FP8 is always off here; asking for it is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


def refuse_fp8(what: str) -> NoReturn:
    raise RuntimeError(f"{what}: the CPU backend computes no FP8; use --precision bf16 or fp32, or --backend cuda")


class FP8GlobalStateManager:
    """The questions that Megatron-Core asks about FP8, all answered with no."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False

    @staticmethod
    def is_fp8_calibration() -> bool:
        return False

    @staticmethod
    def is_fp8_available() -> tuple[bool, str]:
        return False, "FP8 needs a GPU"

    @staticmethod
    def get_fp8_recipe() -> None:
        return None

    @staticmethod
    def with_fp8_parameters() -> bool:
        return False

    @staticmethod
    def reset() -> None: ...


@contextmanager
def fp8_autocast(enabled: bool = True, **settings: Any) -> Iterator[None]:
    """Nothing when disabled; FP8 cannot be enabled."""
    if enabled:
        refuse_fp8("fp8_autocast")
    yield


@contextmanager
def fp8_model_init(enabled: bool = True, **settings: Any) -> Iterator[None]:
    """Nothing when disabled; weights cannot be FP8."""
    if enabled:
        refuse_fp8("fp8_model_init")
    yield


autocast = fp8_autocast
quantized_model_init = fp8_model_init

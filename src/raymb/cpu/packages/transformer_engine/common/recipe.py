"""FP8 recipes can be named and tested for, not created: FP8 arithmetic needs a GPU."""

from typing import Any

from transformer_engine.pytorch.fp8 import refuse_fp8


class Recipe:
    def __init__(self, *args: Any, **kwargs: Any):
        refuse_fp8(type(self).__name__)


class DelayedScaling(Recipe): ...


class Float8CurrentScaling(Recipe): ...


class Float8BlockScaling(Recipe): ...


class MXFP8BlockScaling(Recipe): ...


class NVFP4BlockScaling(Recipe): ...


class CustomRecipe(Recipe): ...


class Format:
    """FP8 number formats; the names are enough, nothing is ever quantized."""

    E4M3 = "e4m3"
    E5M2 = "e5m2"
    HYBRID = "hybrid"

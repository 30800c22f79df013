"""What Bridge does once, before the first step, and need not."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

from raymb.bridge.patches.patch import Patch, text_of, upstream

_COMPILES = "megatron.core.datasets.utils:compile_helpers"
_WARMS_UP = "megatron.bridge.training.initialize:set_jit_fusion_options"


def skip_compiling_shipped_helpers() -> None:
    """Where the wheel has brought what would be compiled."""
    with contextlib.suppress(ImportError):
        importlib.import_module("megatron.core.datasets.helpers_cpp")
        initialize = importlib.import_module("megatron.bridge.training.initialize")
        initialize.compile_helpers = lambda: None  # type: ignore[attr-defined]


def leave_out_warm_up() -> None:
    """What is called compiles then."""
    initialize = importlib.import_module("megatron.bridge.training.initialize")
    if hasattr(initialize, "_warmup_jit_function"):
        initialize._warmup_jit_function = lambda *args: None  # type: ignore[attr-defined]


def _compiles_what_is_shipped() -> bool:
    shipped = Path(upstream("megatron.core.datasets.helpers_cpp").__file__ or "")
    exits = "sys.exit(1)" in text_of(_COMPILES) and '"make"' in text_of(_COMPILES)
    return exits and not (shipped.parent / "Makefile").exists()


def _warms_up() -> bool:
    return "_warmup_jit_function(" in text_of(_WARMS_UP)


PATCHES = (
    Patch(
        "helpers that are shipped are not compiled",
        "megatron-core",
        "0.19.2",
        _COMPILES,
        "runs `make` in the installed package, which has no Makefile, and calls sys.exit(1), although the wheel ships "
        "the compiled helpers_cpp",
        _compiles_what_is_shipped,
        skip_compiling_shipped_helpers,
    ),
    Patch(
        "no warm-up of kernels",
        "megatron-bridge",
        "0.6.2",
        _WARMS_UP,
        "compiles bias_swiglu or bias_gelu and bias_dropout_add before the first step (40 s where no cache has them), "
        "which most models never call",
        _warms_up,
        leave_out_warm_up,
    ),
)

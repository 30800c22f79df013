"""torch.cuda's face over the CPU.

Megatron asks torch.cuda for the device, streams, events, memory and RNG, and creates tensors with device="cuda".
Each answer here is the CPU's own: one device, work that is done when a call returns, the CPU generator as RNG.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch

CPU = torch.device("cpu")
_FACTORIES = [
    "arange",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
    "as_tensor",
    "empty_strided",
    "scalar_tensor",
]
_TENSOR_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


class Stream:
    """A stream whose work is finished when it is issued."""

    cuda_stream = 0
    device = CPU

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


class Event:
    """An event that takes the wall clock."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def wait(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds, as torch.cuda.Event gives them."""
        return (end.seconds - self.seconds) * 1000.0


def install() -> None:
    """Replace torch.cuda's functions and redirect device="cuda" arguments. Idempotent."""
    if getattr(torch.cuda, "_raymb_cpu", False):
        return
    _install_device_functions()
    _install_rng()
    _install_device_arguments()
    # Megatron decorates fused functions with torch.compile at import; importing inductor for that costs 4 CPU
    # seconds a worker and its kernels would not be used (TORCHDYNAMO_DISABLE).
    torch.compile = _compile_nothing  # type: ignore[assignment]
    torch.cuda._raymb_cpu = True  # type: ignore[attr-defined]


def _install_device_functions() -> None:
    stream = Stream()
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "device_count": 1,
        "current_device": CPU,
        "current_stream": stream,
        "default_stream": stream,
        "get_device_name": "cpu",
        "get_device_capability": (0, 0),
        "get_device_properties": SimpleNamespace(
            name="cpu", major=0, minor=0, total_memory=_total_memory(), multi_processor_count=1, warp_size=32
        ),
        "mem_get_info": (_total_memory(), _total_memory()),
        "memory_stats": {},
        "ipc_collect": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, functools.partial(_answer, answer))
    for name in (
        "set_device",
        "set_stream",
        "synchronize",
        "empty_cache",
        "_lazy_init",
        "init",
        "reset_peak_memory_stats",
    ):
        setattr(torch.cuda, name, functools.partial(_answer, None))
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(torch.cuda, name, _resident_bytes)
    torch.cuda.Stream, torch.cuda.Event = Stream, Event  # type: ignore[misc, assignment]
    for name in ("stream", "device"):
        setattr(torch.cuda, name, lambda *args, **kwargs: nullcontext())
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = functools.partial(_answer, None)  # type: ignore


def _install_rng() -> None:
    """The CUDA generator is the CPU generator. Seeding it goes past torch.manual_seed, which calls back."""
    generator = torch.default_generator

    def set_state(state: torch.Tensor, device: Any = None) -> None:
        generator.set_state(state)

    def seed(value: int) -> None:
        generator.manual_seed(value)

    torch.cuda.get_rng_state = lambda device=None: generator.get_state()  # type: ignore[assignment]
    torch.cuda.set_rng_state = set_state  # type: ignore[assignment]
    torch.cuda.get_rng_state_all = lambda: [generator.get_state()]  # type: ignore[assignment]
    torch.cuda.set_rng_state_all = lambda states: generator.set_state(states[0])  # type: ignore[assignment]
    torch.cuda.manual_seed = torch.cuda.manual_seed_all = seed  # type: ignore[assignment]
    torch.cuda.initial_seed = generator.initial_seed  # type: ignore[assignment]
    torch.cuda.default_generators = (generator,)  # type: ignore[assignment]


def _install_device_arguments() -> None:
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name in _TENSOR_METHODS:
        setattr(torch.Tensor, name, _on_cpu(getattr(torch.Tensor, name)))
    torch.Tensor.to = _to_cpu(torch.Tensor.to)  # type: ignore[assignment]
    torch.nn.Module.to = _to_cpu(torch.nn.Module.to)  # type: ignore[assignment]
    for kind in (torch.Tensor, torch.nn.Module):
        kind.cuda = lambda self, *args, **kwargs: self  # type: ignore[assignment]
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self  # type: ignore[assignment]
    torch.Tensor.type = _cuda_type_name(torch.Tensor.type)  # type: ignore[assignment]


def _answer(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


def _is_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _on_cpu(function: Callable) -> Callable:
    """`function` with a device="cuda" argument answered on the CPU."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return wrapped


def _to_cpu(function: Callable) -> Callable:
    wrapped_function = _on_cpu(function)

    @functools.wraps(function)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapped_function(self, *(CPU if _is_cuda(arg) else arg for arg in args), **kwargs)

    return wrapped


def _cuda_type_name(function: Callable) -> Callable:
    """Tensor.type() as CUDA would say it: Megatron's optimizer sorts parameters by these strings."""

    @functools.wraps(function)
    def wrapped(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs and self.dtype in _TYPE_NAMES:
            return _TYPE_NAMES[self.dtype]
        return function(self, *args, **kwargs)

    return wrapped


def _compile_nothing(model: Any = None, *args: Any, **kwargs: Any) -> Any:
    return model if model is not None else (lambda function: function)


def _total_memory() -> int:
    """Bytes of the machine's memory, or of the container's share of it."""
    import psutil

    return psutil.virtual_memory().total


def _resident_bytes(device: Any = None) -> int:
    import psutil

    return psutil.Process().memory_info().rss

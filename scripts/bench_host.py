"""How fast this host itself is, in a line: figures of two hosts can be compared by it. Every bench prints it first.

Python: nanoseconds of one turn of a loop that calls a function and adds. Matrix products: TFLOP/s, bf16 on a GPU, fp32
on a CPU with all of torch's threads.
"""

from __future__ import annotations

import os
import time

import torch

from raymb.rank.accelerator import processor_name


def main() -> None:
    if torch.cuda.is_available():
        rate, of = _rate("cuda", torch.bfloat16, 8192), f"{torch.cuda.get_device_name()}, bf16"
    else:
        rate, of = _rate("cpu", torch.float32, 2048), f"{torch.get_num_threads()} threads, fp32"
    host = f"{os.cpu_count()} x {processor_name()}"
    print(f"host: {host}; Python {_turn():.0f} ns a turn; matrix products {rate:.3g} TFLOP/s ({of})")


def _turn(turns: int = 1_000_000) -> float:
    """The least of five."""

    def add(one: int, two: int) -> int:
        return one + two

    found = []
    for _ in range(5):
        began, total = time.perf_counter(), 0
        for number in range(turns):
            total = add(total, number)
        found.append((time.perf_counter() - began) / turns * 1e9)
    return min(found)


def _rate(device: str, dtype: torch.dtype, size: int) -> float:
    """The best of ten products of square matrices."""
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        _ = one @ two
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best / 1e12


if __name__ == "__main__":
    main()

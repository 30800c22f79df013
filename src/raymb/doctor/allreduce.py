"""How fast ranks add up their gradients: NCCL between GPUs, gloo between CPU workers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raymb.doctor.child import ask_child
from raymb.doctor.finding import Finding
from raymb.doctor.machine import Device
from raymb.doctor.ranks import free_port
from raymb.errors import last_line
from raymb.plan.gpus import gpu_of_device

AREA = "all-reduce"
_CPU_RANKS = 2
_LEAST_SHARE = 0.25
"""Of the link's rate by datasheet: NCCL reaches most of an NVLink and a third of a PCIe slot; where it takes another
way than NVLink, a tenth or less is left."""
_MODULE = "raymb.doctor.ranks"
_FIX = "look for why with NCCL_DEBUG=INFO (or TORCH_DISTRIBUTED_DEBUG=DETAIL); see that no other job holds the GPUs"


def check_allreduce(
    address: str | None, devices: list[Device], seconds: float, tell: Callable[[str], None]
) -> Iterator[Finding]:
    """
    Args:
        address: of a cluster; None measures on this machine.
        devices: GPUs of this machine.
    """
    if address is None:
        visible = _visible(len(devices))
        if len(visible) == 1:
            yield Finding(AREA, "bandwidth", "ok", "one GPU: nothing is reduced between GPUs")
            return
        answer, errors = _here(visible, seconds, tell)
    else:
        given = json.dumps({"cluster": address, "seconds": seconds})
        answer, errors = ask_child(_MODULE, given, 2 * seconds, lambda: tell("all-reduce between the nodes"))
    if answer is None:
        if errors:
            yield Finding(AREA, "bandwidth", "error", f"it failed: {last_line(errors)[:300]}", _FIX)
        else:
            yield Finding(AREA, "bandwidth", "ok", "one rank: nothing is reduced between ranks")
        return
    yield judge(answer, devices)


def judge(answer: dict[str, Any], devices: list[Device]) -> Finding:
    """
    Args:
        answer: as raymb.doctor.ranks prints it.
        devices: GPUs that the ranks had, where they are known.
    """
    ranks, backend = answer["ranks"], answer["backend"]
    bandwidth = bus_bandwidth(ranks, answer["bytes"], answer["seconds"])
    where = "on 1 node" if answer["nodes"] == 1 else f"on {answer['nodes']} nodes"
    said = (
        f"{bandwidth / 1e9:.3g} GB/s bus bandwidth, {backend}, {ranks} ranks {where} "
        f"({answer['bytes'] >> 20} MiB in {1000 * answer['seconds']:.3g} ms)"
    )
    gpu = gpu_of_device(devices[0].name) if devices and backend == "nccl" and answer["nodes"] == 1 else None
    if gpu is not None and bandwidth < _LEAST_SHARE * gpu.link:
        said += f"; the links of {gpu.name} have {gpu.link / 1e9:g}"
        fix = "see `nvidia-smi topo -m` and NCCL_DEBUG=INFO: which way NCCL takes, and why not NVLink"
        return Finding(AREA, "bandwidth", "warning", said, fix)
    return Finding(AREA, "bandwidth", "ok", said)


def bus_bandwidth(ranks: int, size: int, seconds: float) -> float:
    """Bytes/s through a rank's links, whatever the number of ranks. Source: nccl-tests, doc/PERFORMANCE.md."""
    return 2 * (ranks - 1) / ranks * size / seconds


def _visible(there: int) -> list[str]:
    """GPUs that a process here would see."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or not there:
        return [str(index) for index in range(there)]
    return [one.strip() for one in chosen.split(",") if one.strip() not in ("", "-1", "NoDevFiles")]


def _here(gpus: list[str], seconds: float, tell: Callable[[str], None]) -> tuple[Any, str]:
    """Rank 0's answer and, where one failed, the errors."""
    backend, world, port = ("nccl", len(gpus), free_port()) if gpus else ("gloo", _CPU_RANKS, free_port())

    def ask(rank: int) -> tuple[Any, str]:
        given = {"rank": rank, "world": world, "address": "127.0.0.1", "port": port, "backend": backend}
        settings = {"CUDA_VISIBLE_DEVICES": gpus[rank] if gpus else ""}
        said = lambda: tell(f"all-reduce, {world} ranks, {backend}") if rank == 0 else None  # noqa: E731
        return ask_child(_MODULE, json.dumps(given), seconds, said, settings)

    with ThreadPoolExecutor(world) as pool:
        answers = list(pool.map(ask, range(world)))
    answer = answers[0][0]
    return answer, "" if answer else next((errors for _, errors in answers if errors), "no rank answered")

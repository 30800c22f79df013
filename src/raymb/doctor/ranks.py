"""`python -m raymb.doctor.ranks`: all-reduce between ranks, in processes of their own, as a run's workers are.

Reads either {"rank", "world", "address", "port", "backend"}, one rank on this machine, or {"cluster", "seconds"}, which
starts a rank for each GPU of a cluster (for each node, without GPUs). Its last line is {"backend", "ranks", "nodes",
"bytes", "seconds"}; null for a rank other than 0.
"""

from __future__ import annotations

import json
import socket
import sys
from datetime import timedelta
from typing import Any

_BYTES = {"nccl": 256 << 20, "gloo": 16 << 20}
"""Bytes of one all-reduce: gradients of a large model come in buckets of this size; a CPU takes seconds for as much."""
_TIMES = {"nccl": 20, "gloo": 5}
_WARMING = 3
_SECONDS_FOR_A_MEETING = 60.0


def main() -> None:
    asked = json.loads(sys.stdin.read())
    found = between_nodes(asked["cluster"], asked["seconds"]) if "cluster" in asked else measure(nodes=1, **asked)
    print(json.dumps(found))


def measure(rank: int, world: int, nodes: int, address: str, port: int, backend: str) -> dict[str, Any] | None:
    """Take part in all-reduces.

    Args:
        address: of rank 0, with the port that it listens at.
        backend: nccl (on this process's first GPU) or gloo.

    Returns:
        On rank 0 the mean time of one; seconds and bytes.
    """
    import time

    import torch
    import torch.distributed as dist

    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        backend,
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=_SECONDS_FOR_A_MEETING),
    )
    numbers = torch.ones(_BYTES[backend] // 4, dtype=torch.float32, device=device)

    def reduced(times: int) -> float:
        dist.barrier(device_ids=[0] if backend == "nccl" else None)
        begin = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(numbers, op=dist.ReduceOp.AVG if backend == "nccl" else dist.ReduceOp.SUM)
            if backend != "nccl":
                numbers.div_(world)
        if backend == "nccl":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / times

    reduced(_WARMING)
    seconds = reduced(_TIMES[backend])
    right = bool((numbers == 1).all())
    dist.destroy_process_group()
    if not right:
        raise ArithmeticError("an all-reduce gave wrong numbers")
    if rank:
        return None
    return {"backend": backend, "ranks": world, "nodes": nodes, "bytes": _BYTES[backend], "seconds": seconds}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return listening.getsockname()[1]


def between_nodes(cluster: str, seconds: float) -> dict[str, Any] | None:
    """Measure between all GPUs of a cluster, or between its nodes; None where there is but one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raymb.doctor.nodes import join
    from raymb.driver.nodes import working_nodes

    join(cluster)
    nodes = working_nodes()
    gpus = any(node["Resources"].get("GPU", 0) for node in nodes)
    places = [node for node in nodes for _ in range(int(node["Resources"].get("GPU", 0)) if gpus else 1)]
    if len(places) < 2:
        return None
    used = len({node["NodeID"] for node in places})

    def on(node: dict[str, Any], task: Any, gpus: int) -> Any:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return ray.remote(task).options(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=where)

    port = ray.get(on(places[0], free_port, 0).remote(), timeout=seconds)
    address, backend = places[0]["NodeManagerAddress"], "nccl" if gpus else "gloo"
    ranks = [
        on(node, measure, int(gpus)).remote(rank, len(places), used, address, port, backend)
        for rank, node in enumerate(places)
    ]
    _, waiting = ray.wait(ranks, num_returns=len(ranks), timeout=seconds)
    if waiting:
        raise TimeoutError(f"{len(waiting)} of {len(ranks)} ranks gave no answer within {seconds:g} s")
    return ray.get(ranks)[0]


if __name__ == "__main__":
    main()

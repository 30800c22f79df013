"""`python -m raymb.doctor.nodes`: joins a cluster and asks its nodes, in a process of its own: Ray's C++ tells of a
refused token on standard error alone, and goes on trying for as long as it likes.

Reads {"address", "storage", "seconds"}; the last line that it prints is {"storage", "nodes": [...]}.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from raymb.doctor.machine import can_write, nearest


def main() -> None:
    asked = json.loads(sys.stdin.read())
    print(json.dumps(ask_cluster(asked["address"], asked["storage"], asked["seconds"])))


def ask_cluster(address: str, storage: str | None, seconds: float) -> dict[str, Any]:
    """
    Args:
        storage: a directory that all nodes should see; None for an address.
        seconds: for the nodes' answers.
    """
    join(address)
    from raymb.cluster import blind_nodes, name_of, working_nodes

    nodes = working_nodes()
    machines = _machines(nodes, storage, seconds)
    blind: dict[str, str] = {}
    place = nearest(storage) if storage is not None else None
    if place is not None and can_write(place):
        blind = blind_nodes(place, [node for node in nodes if "machine" in machines[node["NodeID"]]], seconds)
    else:
        place = None
    return {
        "storage": place and str(place),
        "nodes": [
            {
                "name": name_of(node),
                "cpus": node["Resources"].get("CPU", 0),
                "gpus": node["Resources"].get("GPU", 0),
                "blind": blind.get(node["NodeID"], ""),
                **machines[node["NodeID"]],
            }
            for node in nodes
        ],
    }


def join(address: str) -> None:
    import ray

    from raymb.cluster import check_reachable

    check_reachable(address)
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)


def _machines(nodes: list[dict[str, Any]], storage: str | None, seconds: float) -> dict[str, dict[str, Any]]:
    """Node id to {"machine": ...} or {"trouble": ...}."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raymb.errors import last_line

    look = ray.remote(_look)
    asked = {
        look.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(storage): node["NodeID"]
        for node in nodes
    }
    answers, silent = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    said: dict[str, dict[str, Any]] = {asked[one]: {"trouble": f"no answer within {seconds:g} s"} for one in silent}
    for one in answers:
        try:
            said[asked[one]] = {"machine": ray.get(one)}
        except Exception as error:  # whatever the node's own Python raises
            said[asked[one]] = {"trouble": last_line(error)[:300]}
    return said


def _look(storage: str | None) -> dict[str, Any]:
    """On the node. Pickled by value, so that a node without raymb says so by itself."""
    from dataclasses import asdict

    from raymb.doctor.machine import this_machine

    return asdict(this_machine(storage))


if __name__ == "__main__":
    main()

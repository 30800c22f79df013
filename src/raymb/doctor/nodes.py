"""`python -m raymb.doctor.nodes`: joins a cluster and asks its nodes, in a process of its own: Ray's C++ tells of a
refused token on standard error alone, and keeps trying for as long as it likes.

Reads {"address", "storage", "seconds"}; the last line that it prints is {"storage", "grows", "nodes": [...]}.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from raymb.doctor.machine import can_write, nearest


def main() -> None:
    asked = json.loads(sys.stdin.read())
    print(json.dumps(ask_cluster(asked["address"], asked["storage"], asked["seconds"])))


def ask_cluster(address: str, storage: str | None, seconds: float) -> dict[str, Any]:
    """
    Args:
        storage: a directory that all nodes should see; None for a URI.
        seconds: for the nodes' answers.
    """
    join(address)
    from raymb.driver import autoscaler
    from raymb.driver.nodes import ask_nodes, name_of, nodes_without, working_nodes

    nodes = working_nodes()
    said = ask_nodes(_what_machine, nodes, seconds, storage)
    machines = {node: {"trouble": one} if isinstance(one, str) else {"machine": one} for node, one in said.items()}
    without: dict[str, str] = {}
    place = nearest(storage) if storage is not None else None
    if place is not None and can_write(place):
        without = nodes_without(place, [node for node in nodes if "machine" in machines[node["NodeID"]]], seconds)
    else:
        place = None
    return {
        "storage": place and str(place),
        "grows": autoscaler.look({"CPU": 1.0}, 1).active,
        "nodes": [
            {
                "name": name_of(node),
                "cpus": node["Resources"].get("CPU", 0),
                "gpus": node["Resources"].get("GPU", 0),
                "storage_trouble": without.get(node["NodeID"], ""),
                **machines[node["NodeID"]],
            }
            for node in nodes
        ],
    }


def join(address: str) -> None:
    import ray

    from raymb.driver.ray_address import check_reachable, init_argument

    check_reachable(address)
    ray.init(init_argument(address), log_to_driver=False, logging_level=logging.ERROR)


def _what_machine() -> Callable[[str | None], dict[str, Any]]:
    def look(storage: str | None) -> dict[str, Any]:
        """The node's Machine as a dict."""
        from dataclasses import asdict

        from raymb.doctor.machine import this_machine

        return asdict(this_machine(storage))

    return look


if __name__ == "__main__":
    main()

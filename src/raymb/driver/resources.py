"""Waiting for the workers' resources. They are requested as one placement group, which the autoscaler sees and which
Ray removes by itself when the driver ends, however it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from rich.console import Console

from raymb.driver import autoscaler
from raymb.driver.autoscaler import Autoscaling
from raymb.driver.cluster import Resources
from raymb.errors import ClusterError

_SECONDS = 60.0
_SECONDS_FOR_NODES = 900.0
"""What `auto` waits: for resources that are there and in use, and for nodes that an autoscaler starts."""
_SECONDS_BETWEEN_LINES = 30.0


def wait_for(worker: Resources, num_workers: int, seconds: float | str, console: Console, way_out: str = "") -> None:
    """Wait until the cluster has the resources and they are free; a line every 30 s.

    Args:
        seconds: to wait; auto: 60, or 900 where an autoscaler can bring nodes.
        way_out: what else the user can do, beside what is true of every run.

    Raises:
        ClusterError: with what is asked and what there is, when the time is over, or at once where Ray says that the
            cluster can never have it.
    """
    bundle = worker.to_dict()
    began = said = time.monotonic()
    with _asked([bundle] * num_workers) as is_there:
        while not is_there(1.0):
            found, waited = autoscaler.look(bundle, num_workers), time.monotonic() - began
            missing = _missing(bundle, num_workers)
            if found.impossible:
                raise ClusterError(
                    f"the cluster can never have enough for {num_workers} workers: {missing}, and Ray's autoscaler has "
                    "no nodes to add that would give the rest",
                    f"lower --num_workers, or add such nodes to the cluster's configuration{way_out}",
                )
            limit = _limit(seconds, found)
            if waited >= limit:
                raise ClusterError(
                    f"the cluster has too little for {num_workers} workers after {waited:.0f} s: "
                    + "; ".join(filter(None, [missing, found.described()])),
                    "lower --num_workers or --cpus_per_worker, add nodes, or wait longer with --wait_for_resources "
                    f"SECONDS{way_out}",
                )
            if time.monotonic() - said >= _SECONDS_BETWEEN_LINES or said == began:
                said = time.monotonic()
                line = "; ".join(filter(None, [missing, found.described()]))
                console.print(
                    f"waiting for resources, {waited:.0f} of {limit:.0f} s: {line}", highlight=False, soft_wrap=True
                )


def _limit(seconds: float | str, found: Autoscaling) -> float:
    if seconds == "auto":
        return _SECONDS_FOR_NODES if found.active else _SECONDS
    return float(seconds)


@contextmanager
def _asked(bundles: list[dict[str, float]]) -> Iterator[Any]:
    """Request these bundles; yields `is_there(seconds)`, which says whether the cluster has reserved them. The request
    ends with the block: Ray Train makes its own."""
    group = placement_group(bundles, strategy="PACK")
    try:
        yield group.wait
    finally:
        remove_placement_group(group)


def _missing(bundle: Mapping[str, float], count: int) -> str:
    """What is asked and what there is, for each resource that falls short."""
    have, free = ray.cluster_resources(), ray.available_resources()
    short = []
    for name, each in bundle.items():
        asked = f"{each * count:g} {name}s asked ({each:g} for each worker), {have.get(name, 0):g} there"
        if each * count > have.get(name, 0) + 1e-6:
            short.append(asked)
        elif each * count > free.get(name, 0) + 1e-6:
            short.append(f"{asked}, {free.get(name, 0):g} of them free")
    needs = ", ".join(f"{each:g} {name}" for name, each in bundle.items())
    return ", ".join(short) or f"{count} x ({needs}) do not fit into what is free on each node"

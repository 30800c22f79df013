"""What the autoscaler of a Ray cluster is doing about resources that are asked for and not there.

Ray has no public question for this: Ray 2.60's two autoscalers tell the GCS, each in its own way, and `ray status`
prints it. Where neither says anything, nothing is known, and the run waits as long as it was told to.
"""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

_SECONDS_TO_ANSWER = 5.0


@dataclass(frozen=True)
class Autoscaling:
    """
    Args:
        active: whether there is an autoscaler that could bring nodes, as far as it can be told.
        starting: nodes on their way, by node type.
        impossible: whether no node type, or not enough nodes of it, can ever give what is asked.
    """

    active: bool = False
    starting: Mapping[str, int] = field(default_factory=dict)
    impossible: bool = False

    def described(self) -> str:
        """`starting: 2 x gpu-4`; "" where nothing is."""
        nodes = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.starting.items()))
        return f"starting: {nodes}" if nodes else ""


def look(bundle: Mapping[str, float], count: int) -> Autoscaling:
    """
    Args:
        bundle: what one worker needs, by resource.
        count: workers, which a placement group asks for.
    """
    largest = _largest()
    too_small = largest is not None and any(each * count > largest.get(name, 0) for name, each in bundle.items())
    state = _state_of_second()
    starting = collections.Counter(
        {one.ray_node_type_name: one.count for one in state.pending_instance_requests if one.count}
    )
    starting.update(one.ray_node_type_name for one in state.pending_instances)
    starting = starting or _starting_by_first()
    return Autoscaling(
        active=largest is not None or state.autoscaler_state_version > 0 or bool(starting),
        starting=dict(starting),
        impossible=too_small or (not starting and _is_infeasible(state, bundle) and _is_absent(bundle)),
    )


def _is_infeasible(state: Any, bundle: Mapping[str, float]) -> bool:
    """Whether the second autoscaler calls such bundles infeasible, which it does, too, while others use the nodes."""
    groups = (
        [dict(one.resources_bundle) for one in group.requests] for group in state.infeasible_gang_resource_requests
    )
    return any(all(one == bundle for one in group) for group in groups)


def _is_absent(bundle: Mapping[str, float]) -> bool:
    """Whether no node has any of a resource that is needed."""
    have = ray.cluster_resources()
    return any(not have.get(name) for name in bundle)


def _largest() -> dict[str, int] | None:
    """The most that the cluster can grow to, where its operator (Anyscale's does) has told Ray."""
    from raymb.runtime.ray_internals import state

    with contextlib.suppress(Exception):  # of a Ray without it
        return state.get_max_resources_from_cluster_config()
    return None


def _state_of_second() -> Any:
    """What Ray's second autoscaler (KubeRay, `ray up`) reports: an AutoscalingState, empty where it does not run."""
    from raymb.runtime.ray_internals import GcsClient, GetClusterStatusReply

    reply = GetClusterStatusReply()
    with contextlib.suppress(Exception):  # the GCS is busy, or older
        client = GcsClient(ray.get_runtime_context().gcs_address)
        reply.ParseFromString(client.get_cluster_status(timeout_s=_SECONDS_TO_ANSWER))
    return reply.autoscaling_state


def _starting_by_first() -> collections.Counter[str]:
    """What Ray's first autoscaler (`ray start --autoscaling-config`) reports; it never says that something is
    impossible."""
    from raymb.runtime.ray_internals import DEBUG_AUTOSCALING_STATUS, _internal_kv_get

    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}").get("autoscaler_report") or {}
    launching = collections.Counter(report.get("pending_launches") or {})
    launching.update(kind for _, kind, _ in report.get("pending_nodes") or [])
    return launching

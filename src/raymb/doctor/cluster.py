"""A Ray cluster: whether it lets this client in, and whether its nodes are alike, have room and see the storage."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raymb.doctor.child import ask_child
from raymb.doctor.environment import check_cuda_packages
from raymb.doctor.finding import Finding, listed, plural
from raymb.doctor.gpus import check_gpus
from raymb.doctor.machine import Machine, from_dict
from raymb.doctor.storage import check_disks
from raymb.doctor.tested import pinned_versions
from raymb.driver.ray_address import job_server_problem
from raymb.errors import last_line

AREA = "cluster"
_GRACE = 30.0
"""Seconds beyond the nodes' own for joining: Ray tries for 20 s."""
_MUST_AGREE = (
    "python",
    "raymb",
    "ray",
    "torch",
    "megatron-core",
    "megatron-bridge",
    "transformers",
    "numpy",
    "transformer-engine",
)
"""Packages whose pickles or checkpoints pass from one process to another."""
_VERSIONS = re.compile(r"started with:\s+Ray: (\S+)\s+Python: (\S+).*?Ray: (\S+)\s+Python: (\S+)", re.S)
"""Finds the versions in Ray's message about a cluster of other versions."""


def check_cluster(
    address: str,
    storage: str | None,
    seconds: float,
    here: Machine,
    parameters: int | None,
    tell: Callable[[str], None],
) -> Iterator[Finding]:
    """
    Args:
        storage: directory that all nodes should see; None for a URI.
        seconds: for the nodes' answers.
        parameters: of the model, where one is known.
    """
    if problem := job_server_problem(address):
        said, fix = problem
        yield Finding(AREA, "join", "error", said, fix)
        return
    yield _token()
    given = json.dumps({"address": address, "storage": storage, "seconds": seconds})
    answer, errors = ask_child("raymb.doctor.nodes", given, seconds + _GRACE, lambda: tell(f"the nodes of {address}"))
    if answer is None:
        yield why_not_joined(address, errors)
        return
    yield from judge_nodes(address, answer["nodes"], answer["storage"], here, parameters, answer["grows"])


def _token() -> Finding:
    """What this client would show a cluster. Ray's rules: ray/_private/authentication/authentication_token_setup.py."""
    mode = os.environ.get("RAY_AUTH_MODE")
    file = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    if os.environ.get("RAY_AUTH_TOKEN"):
        source = "RAY_AUTH_TOKEN"
    elif os.path.isfile(file):
        source = file
    else:
        source = ""
    if mode == "token" and not source:
        fix = "copy the head's token: RAY_AUTH_TOKEN, or ~/.ray/auth_token (on the head: ray get-auth-token)"
        return Finding(AREA, "token", "error", "RAY_AUTH_MODE is token, and this client has none", fix)
    sends = mode == "token" or (mode is None and source)
    said = f"this client sends the one of {source}" if sends else "this client sends none"
    return Finding(AREA, "token", "ok", f"{said} (RAY_AUTH_MODE: {mode or 'not set'})")


def why_not_joined(address: str, errors: str) -> Finding:
    """The reason of a child that failed, from what it wrote to its standard error."""
    if "InvalidAuthToken" in errors or "AuthenticationError" in errors:
        said = f"{address} refuses this client's authentication token"
        fix = (
            "give client and every node the head's token (on the head: ray get-auth-token) in RAY_AUTH_TOKEN or "
            "~/.ray/auth_token, with RAY_AUTH_MODE=token"
        )
        return Finding(AREA, "join", "error", said, fix)
    if found := _VERSIONS.search(errors):
        ray, python, our_ray, our_python = found.groups()
        said = f"{address} runs Ray {ray} on Python {python}, this client Ray {our_ray} on Python {our_python}"
        return Finding(AREA, "join", "error", said, f"use the same on both: raymb is tested with Ray {_tested_ray()}")
    reason = " ".join(last_line(errors).rpartition(f" {address}: ")[2].split())[:300]
    said = f"no Ray cluster answers at {address}: {reason}"
    fix = "check --ray_address (HOST:PORT of the head, `auto` on its nodes) and the port's way through firewalls"
    return Finding(AREA, "join", "error", said, fix)


def _tested_ray() -> str:
    return pinned_versions("cpu")["ray"]


def judge_nodes(
    address: str,
    nodes: list[Mapping[str, Any]],
    storage: str | None,
    here: Machine,
    parameters: int | None,
    grows: bool = False,
) -> Iterator[Finding]:
    """
    Args:
        nodes: as raymb.doctor.nodes describes them.
        grows: an autoscaler starts nodes when a run asks for them.
    """
    cpus, gpus = (sum(node[kind] for node in nodes) for kind in ("cpus", "gpus"))
    said = f"{address}: {plural(len(nodes), 'node')} with {cpus:g} CPUs and {gpus:g} GPUs"
    if not nodes and grows:
        fix = "start a run to see them: its first lines name what they lack"
        yield Finding(AREA, "nodes", "warning", f"{said}: the autoscaler starts them when a run asks", fix)
        return
    if not nodes:
        yield Finding(AREA, "nodes", "error", f"{said}: none can run a worker", "start nodes with CPUs: ray start")
        return
    yield Finding(AREA, "nodes", "ok", said)
    found = {node["name"]: list(_of_node(node, storage, here, parameters)) for node in nodes}
    yield from _merged(found)
    if storage is not None and not any(node.get("trouble") or node["storage_trouble"] for node in nodes):
        yield Finding(AREA, "storage", "ok", f"seen and written by {plural(len(nodes), 'node')}: {storage}")


def _of_node(node: Mapping[str, Any], storage: str | None, here: Machine, parameters: int | None) -> Iterator[Finding]:
    """What a node says, without its name."""
    if "trouble" in node:
        yield _silent(node["trouble"])
        return
    machine = from_dict(node["machine"])
    yield _versions(machine, here)
    for finding in (*check_cuda_packages(machine), *check_gpus(machine), *check_disks(machine, parameters)):
        if finding.status != "ok":  # what is right would be many lines
            yield replace(finding, area=AREA)
    if machine.devices and node["gpus"] != len(machine.devices):
        said = f"there are {len(machine.devices)} GPUs, and Ray counts {node['gpus']:g}"
        yield Finding(AREA, "gpus", "warning", said, "start Ray there with all of them: ray start --num-gpus N")
    if node["storage_trouble"]:
        fix = "name a --storage_path on storage that every node mounts"
        yield Finding(AREA, "storage", "error", f"{storage} is not seen: {node['storage_trouble']}", fix)


def _merged(found: Mapping[str, Sequence[Finding]]) -> Iterator[Finding]:
    """What several nodes say alike, once, under their names."""
    nodes: dict[Finding, list[str]] = {}
    for node, findings in found.items():
        for finding in findings:
            nodes.setdefault(finding, []).append(node)
    for finding, names in nodes.items():
        whole = f"all {len(names)} nodes" if len(names) == len(found) > 1 else listed(names)
        yield replace(finding, said=f"{whole}: {finding.said}")


def _silent(trouble: str) -> Finding:
    fix = "look at that node: `ray status`, its raylet's log in /tmp/ray"
    if "No module named" in trouble:
        fix = "install raymb there, or use one image for all nodes"
    return Finding(AREA, "node", "error", trouble, fix)


def _versions(machine: Machine, here: Machine) -> Finding:
    """A node's against this client's."""
    pins = {**pinned_versions("cpu"), **(pinned_versions("cuda") if machine.devices and here.devices else {})}
    differing = {
        name: f"{name} {theirs} (here {ours})"
        for name, theirs, ours in (
            ("python", machine.python, here.python),
            ("raymb", machine.raymb, here.raymb),
            *((name, machine.packages.get(name, "none"), here.packages.get(name, "none")) for name in pins),
        )
        if theirs != ours
    }
    if not differing:
        return Finding(AREA, "versions", "ok", f"Python, raymb and {len(pins)} packages as here")
    hard = [name for name in _MUST_AGREE if name in differing]
    named = [differing[name] for name in (*hard, *(name for name in differing if name not in hard))]
    fix = "install the same there (scripts/setup), or use one image for all nodes"
    return Finding(AREA, "versions", "error" if hard else "warning", f"not as here: {listed(named)}", fix)

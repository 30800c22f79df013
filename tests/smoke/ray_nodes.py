"""Several Ray nodes on this machine, by ray.cluster_utils in a process of its own: that class leaves its process with a
key-value client of the cluster that is gone, which ends the process of the tests a minute later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_APART = ["unshare", "--mount", "--uts"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount", "--uts"]
_SERVE = """
import os
import sys
import time
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray.cluster_utils import Cluster

maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray start` does

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[1]), "include_dashboard": False})
nodes = {}
print(cluster.address, flush=True)
print(os.environ.get("RAY_AUTH_MODE", "disabled"), flush=True)
for line in sys.stdin:
    verb, word = line.split()
    if verb == "add":
        node = cluster.add_node(num_cpus=int(word))
        nodes[node.node_id] = node
        print(node.node_id, flush=True)
    elif verb == "wait":
        while sum(node["Alive"] for node in cluster.global_state.node_table()) < int(word):
            time.sleep(0.2)
        print(word, flush=True)
    else:
        cluster.remove_node(nodes.pop(word), allow_graceful=False)
        print(word, flush=True)
cluster.shutdown()
"""


class RayNodes:
    """
    Args:
        head_cpus: 0 for a head that runs no workers.

    Attributes:
        address: of the head.
        authentication: variables of whoever joins: that these nodes want a token is not found out by itself, and a
            client shows one of its own accord only to the cluster that this machine has started last.
    """

    def __init__(self, head_cpus: int):
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(head_cpus)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.address = self._answer()
        self.authentication = {"RAY_AUTH_MODE": self._answer()}
        self._apart: list[subprocess.Popen[bytes]] = []

    def add_apart(self, host: str, place: Path, cpus: int) -> None:
        """A node with a name and an address of its own (Ray Train takes workers of one address for one machine's)
        and, in this place, a file system of its own; the test is skipped where there can be none."""
        if not shutil.which("unshare") or subprocess.run([*_APART, "true"], capture_output=True).returncode:
            pytest.skip("no name spaces of its own for a process here (unshare)")
        alone = f'hostname {host} && mount -t tmpfs none "$0" && exec "$@"'
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--address", self.address]
        start += ["--node-ip-address", f"127.0.0.{len(self._apart) + 2}"]
        self._apart.append(
            subprocess.Popen(
                [*_APART, "sh", "-c", alone, str(place), *start, "--num-cpus", str(cpus), "--disable-usage-stats"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **self.authentication},
            )
        )

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        assert line, "the process of the Ray nodes ended"
        return line

    def _ask(self, verb: str, word: object) -> str:
        assert self._process.stdin
        print(verb, word, file=self._process.stdin, flush=True)
        return self._answer()

    def add(self, cpus: int) -> str:
        """A node's id."""
        return self._ask("add", cpus)

    def kill(self, node: str) -> None:
        """Its processes end at once, as with a machine that is gone."""
        self._ask("kill", node)

    def wait_for(self, count: int) -> None:
        """Until so many nodes, the head among them, are there."""
        self._ask("wait", count)

    def close(self) -> None:
        """All nodes go, and with them their process."""
        for node in self._apart:  # one may be gone
            node.terminate()
            node.wait(timeout=30)
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.wait(timeout=120) == 0

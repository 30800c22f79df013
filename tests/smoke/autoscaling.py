"""A Ray head without CPUs or GPUs, whose autoscaler starts nodes that are processes of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from raymb.doctor.ranks import free_port

_HEAD = "f" * 51 + "00000"
_EMPTY = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)
"""Lists that Ray wants in a configuration."""
NODE_TYPES: dict[str, dict[str, float]] = {"cpu-4": {"CPU": 4}, "gpu-4": {"CPU": 4, "GPU": 4}}
"""What a node of each type has; the GPUs are there by Ray's word alone."""


class AutoscalingCluster:
    """Ray's own fake provider of nodes under its second autoscaler. ray.cluster_utils has a class for it, which ends
    every Ray process of the machine first, and reads a file that Ray's wheel leaves out.

    Args:
        types: names of NODE_TYPES; at most two nodes in all.
        token: for a cluster that wants authentication.
        idle_seconds: after which an idle node goes.
        variables: environment variables of the head and the nodes.
    """

    def __init__(self, *types: str, token: str = "", idle_seconds: float = 20.0, **variables: str):
        self.home = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))  # short: it holds sockets
        self.address = f"127.0.0.1:{free_port()}"
        self.variables = {"RAY_TMPDIR": str(self.home)}
        if token:
            self.variables |= {"RAY_AUTH_TOKEN": token}  # without RAY_AUTH_MODE: a head with a token wants it
        config = self.home / "autoscaling.json"
        config.write_text(json.dumps(self._config(types, idle_seconds)))
        words = ["start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--num-cpus", "0", "--num-gpus", "0"]
        words += ["--port", self.address.rpartition(":")[2], "--autoscaling-config", str(config)]
        words += ["--include-dashboard=false", "--disable-usage-stats"]
        settings = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD,
        }
        self.log = open(self.home / "head.log", "wb")  # noqa: SIM115
        self.head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            env={**os.environ, **self.variables, **settings, **variables},
            stdout=self.log,
            stderr=self.log,
        )
        deadline = time.monotonic() + 60
        while not (self.home / "ray" / "ray_current_cluster").exists():
            assert self.head.poll() is None and time.monotonic() < deadline, (self.home / "head.log").read_text()
            time.sleep(0.2)

    def _config(self, types: tuple[str, ...], idle_seconds: float) -> dict[str, Any]:
        kinds = {name: {"resources": NODE_TYPES[name], "min_workers": 0, "max_workers": 2} for name in types}
        head = {"resources": {"CPU": 0}, "max_workers": 0}
        return {
            "cluster_name": "test",
            "max_workers": 2,
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": idle_seconds / 60,
            "provider": {
                "type": "external",  # as "fake_multinode" it would read that file
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "head_node_id": _HEAD,
                "launch_multiple": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": self.address,
            },
            "available_node_types": {
                name: {**kind, "node_config": {}} for name, kind in {"ray.head.default": head, **kinds}.items()
            },
            "head_node_type": "ray.head.default",
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in _EMPTY},
            "file_mounts_sync_continuously": False,
        }

    def environment(self, **more: str) -> dict[str, str]:
        """Of a command on the head."""
        own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return {**own, **self.variables, "PYTHONPATH": "src", "COLUMNS": "200", **more}

    def nodes(self) -> list[dict[str, float]]:
        """Resources of the nodes beside the head, by its raylets that live."""
        script = (
            "import json, ray, sys; ray.init('auto', log_to_driver=False, logging_level=40);"
            "print(json.dumps([node['Resources'] for node in ray.nodes() if node['Alive']]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=self.environment(),
            timeout=60,
        )
        return [node for node in json.loads(done.stdout.splitlines()[-1]) if "node:__internal_head__" not in node]

    def wait_for_nodes(self, count: int, seconds: float) -> float:
        """Until there are so many beside the head: the seconds that it took."""
        began = time.monotonic()
        while len(self.nodes()) != count:
            assert time.monotonic() - began < seconds, f"not {count} nodes within {seconds} s"
            time.sleep(1)
        return time.monotonic() - began

    def close(self) -> None:
        """End the head, and what it has started: nodes outlive it."""
        self.head.terminate()
        self.head.wait(timeout=60)
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.home) in word for word in process.info["cmdline"] or ()):
                process.kill()
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)

"""The Ray cluster that a run uses: joined or started, and asked for what the plan needs before anything else."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console

import raymb
from raymb.data.cores import usable_cpus
from raymb.driver.environment import without_secrets_of
from raymb.driver.ray_address import OWN, check_reachable, find_ray, init_argument, is_connected
from raymb.driver.ray_start import check_start
from raymb.errors import ClusterError
from raymb.plan.gpus import Gpu, gpu_of_device
from raymb.runtime import ray_internals
from raymb.spec import RunSpec
from raymb.telemetry.ray_messages import keep_what_ray_says


@dataclass(frozen=True)
class Resources:
    """What one worker gets.

    Args:
        cpus: CPUs that Ray reserves (may be a fraction: CPU workers may outnumber cores).
        gpus: 1 or 0.
        threads: OMP_NUM_THREADS.
        memory: bytes, 0 to ask for none: of a training, whose weights are on GPUs.
    """

    cpus: float
    gpus: int
    threads: int
    memory: int = 0

    def to_dict(self) -> dict[str, float]:
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory}
        return {name: amount for name, amount in asked.items() if amount or name == "CPU"}

    def with_memory(self, size: int) -> Resources:
        """The same with so much memory, or as much as the largest machine has."""
        most = max((node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]), default=0)
        return replace(self, memory=int(min(size, most)))


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Args:
        joined: whether it was there before this run.
        note: what is to be said before `described`.
    """

    joined: bool
    note: str = ""

    def backend(self, asked: str) -> str:
        """`auto` takes CUDA on a cluster that is joined, whose GPU nodes may have yet to start, and on a machine that
        has GPUs."""
        if asked != "auto":
            return asked
        return "cuda" if self.joined or ray.cluster_resources().get("GPU", 0) > 0 else "cpu"

    def described(self) -> str:
        """Which cluster it is and what it has, in one line."""
        if not self.joined:
            return f"{self.note}started Ray on this machine"
        nodes = [node for node in ray.nodes() if node["Alive"]]
        gpus: collections.Counter[str] = collections.Counter()
        for node in nodes:
            gpus[_gpu_name(node)] += int(node["Resources"].get("GPU", 0))
        parts = [f"{count} x {name}" if name else f"{count} GPUs" for name, count in gpus.items() if count]
        have = parts or [f"{ray.cluster_resources().get('CPU', 0):g} CPUs, no GPUs"]
        address = ray.get_runtime_context().gcs_address
        plural = "" if len(nodes) == 1 else "s"
        return f"joined the Ray cluster at {address}: {len(nodes)} node{plural}, {', '.join(have)}"

    def check_profiler(self, profiler: str, backend: str) -> None:
        """
        Raises:
            ClusterError: workers cannot be started under it.
        """
        if profiler == "torch":
            return
        if backend == "cpu":
            raise ClusterError("--profiler nsys records GPUs, and the workers are CPU workers", "use --profiler torch")
        if not self.joined and shutil.which(profiler) is None:
            raise ClusterError(
                f"--profiler {profiler}: there is no {profiler} on PATH",
                "install NVIDIA Nsight Systems, or use --profiler torch",
            )

    def gpu(self, named: Gpu | None = None) -> Gpu | None:
        """What GPUs the cluster has, if Ray names them and there is one kind, or those that somebody has named; with
        the memory of the smallest of their nodes, if nobody knows it yet. Ray keeps a part of it for its objects, which
        is a node's memory, too."""
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
        names = {_gpu_name(node) for node in nodes} - {""}
        gpu = named or (gpu_of_device(names.pop()) if len(names) == 1 else None)
        kinds = ("memory", "object_store_memory")
        memory = min((sum(node["Resources"].get(kind, 0) for kind in kinds) for node in nodes), default=0)
        return replace(gpu, host=int(memory)) if gpu and gpu.host is None and memory else gpu

    def resources_of_a_worker(self, backend: str, cpus: float | str, num_workers: int) -> Resources:
        """Share the CPUs of the cluster among CPU workers unless the user says how many each gets. On a cluster that
        is joined and has none at all, nodes have yet to start: a worker gets one."""
        have = ray.cluster_resources().get("CPU", 0.0) or float(num_workers)
        share = min(1.0, math.floor(100 * have / num_workers) / 100)
        if backend == "cuda":
            whole = 1.0 if self.joined else share  # this machine may have more GPUs than CPUs that the run may use
            return Resources(whole if cpus == "auto" else float(cpus), 1, 1)
        if cpus == "auto":
            cpus = share
        return Resources(float(cpus), 0, max(1, int(have // num_workers)))


def _gpu_name(node: dict[str, Any]) -> str:
    """What Ray calls a node's GPUs, such as L4; "" where it has none, or does not know."""
    names = [name for name in node["Resources"] if name.startswith("accelerator_type:")]
    return names[0].partition(":")[2] if names else ""


@contextmanager
def connect(spec: RunSpec, console: Console) -> Iterator[Cluster]:
    """Join the cluster that raymb.driver.ray_address finds, or one that this process is connected to already, or start
    a local one, which ends with the run; say which.

    Raises:
        ClusterError: no cluster answers at the address.
    """
    keep_what_ray_says()
    if is_connected():
        yield Cluster(joined=True)
        return
    asked = spec.cluster.ray_address
    found = find_ray(asked)
    address = found.address
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES to the user
    # A process for every core of the machine would be started ahead, and stay idle.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    check_start(own=not address)
    if address:
        check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if environment := _runtime_environment(spec.cluster.working_dir, bool(address)):
        options["runtime_env"] = environment
    if not address:
        options["include_dashboard"] = False  # nobody looks at it, and it takes a core for seconds at the start
        options["num_cpus"] = math.ceil(usable_cpus())  # Ray counts those of the machine
    try:
        # Without RAY_ADDRESS, "local" starts a new cluster even where another one runs on this machine.
        with contextlib.ExitStack() as meanwhile:
            if not address:
                meanwhile.enter_context(_without_api_server())
                meanwhile.enter_context(without_secrets_of(spec))
            ray.init(address=init_argument(address) if address else OWN, **options)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"no Ray cluster answers at {address}: {reason}" if address else f"Ray cannot start here: {reason}",
            f"check --ray_address (or RAY_ADDRESS); --ray_address {OWN} starts a cluster for this run; more: "
            f"{_doctor(address)}",
        ) from None
    note = f"{found.stale}, the last Ray cluster of this machine, does not answer; " if found.stale else ""
    cluster = Cluster(joined=bool(address), note=note)
    console.print(cluster.described(), highlight=False, soft_wrap=True)
    try:
        yield cluster
    finally:
        ray.shutdown()


def _runtime_environment(working_dir: Path | None, joined: bool) -> dict[str, Any]:
    """What Ray gives to all processes of this run on the nodes: with --working_dir its files, and raymb as it is here;
    on a cluster that is joined this process's PYTHONPATH, unless a Ray job has brought one."""
    environment: dict[str, Any] = {}
    if working_dir is not None:
        environment |= {
            "working_dir": str(working_dir.expanduser().absolute()),
            "py_modules": [str(Path(raymb.__file__).parent)],
            "excludes": ["raymb-runs", ".venv", ".git"],
        }
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    if joined and places and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        # Absolute: a worker has a working directory of its own.
        environment["env_vars"] = {"PYTHONPATH": os.pathsep.join(str(Path(place).absolute()) for place in places)}
    return environment


@contextmanager
def _without_api_server() -> Iterator[None]:
    """Have Ray 2.60 start no API server, for which it waits 1 to 3 s even without a dashboard. No run uses it."""
    original = getattr(ray_internals, "start_api_server", None)
    if original is None:
        yield
        return
    ray_internals.replace("start_api_server", lambda *args, **settings: (None, None))
    try:
        yield
    finally:
        ray_internals.replace("start_api_server", original)


def start_coordinator() -> None:
    """Start the actor that the controller of an elastic run asks for more nodes first (3 CPU seconds of imports, during
    which it would wait), while the controller itself starts. Nothing is lost where Ray has no such actor."""
    with contextlib.suppress(ImportError):
        from raymb.runtime.ray_internals import get_or_create_autoscaling_coordinator

        get_or_create_autoscaling_coordinator()


def _doctor(address: str | None) -> str:
    """The command that tells what is wrong: versions, token, nodes."""
    return f"raymb doctor --ray_address {address}" if address else "raymb doctor"

"""The Ray cluster that a run uses: joined or started, and asked for what the plan needs before anything else."""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray  # noqa: TID253
from ray.exceptions import RayError  # noqa: TID253
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: TID253
from rich.console import Console

from raymb.errors import ClusterError, last_line
from raymb.gpus import Gpu, gpu_of_device
from raymb.plan.placement import HINT, room_problem
from raymb.spec import RunSpec

_SECONDS_FOR_THE_STORAGE = 120.0


@dataclass(frozen=True)
class Resources:
    """What one worker gets.

    Args:
        cpus: CPUs that Ray reserves (may be a fraction: CPU workers may outnumber cores).
        gpus: 1 or 0.
        threads: OMP_NUM_THREADS.
    """

    cpus: float
    gpus: int
    threads: int

    def to_dict(self) -> dict[str, float]:
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Args:
        joined: whether it was there before this run.
    """

    joined: bool

    def backend(self, asked: str) -> str:
        """`auto` takes CUDA when the cluster has GPUs."""
        if asked != "auto":
            return asked
        return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"

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

    def gpu(self) -> Gpu | None:
        """What GPUs the cluster has, if Ray names them and there is one kind."""
        names = [name.partition(":")[2] for name in ray.cluster_resources() if name.startswith("accelerator_type:")]
        return gpu_of_device(names[0]) if len(names) == 1 else None

    def resources_of_a_worker(self, backend: str, cpus: float | str, num_workers: int) -> Resources:
        """Share the CPUs of the cluster among CPU workers unless the user says how many each gets."""
        have = ray.cluster_resources().get("CPU", 1.0)
        if backend == "cuda":
            return Resources(1.0 if cpus == "auto" else float(cpus), 1, 1)
        if cpus == "auto":
            cpus = min(1.0, math.floor(100 * have / num_workers) / 100)
        return Resources(float(cpus), 0, max(1, int(have // num_workers)))


@contextmanager
def connect(spec: RunSpec) -> Iterator[Cluster]:
    """Join the cluster that --ray_address or RAY_ADDRESS names, or one that this process is connected to already,
    or start a local one, which ends with the run.

    Raises:
        ClusterError: no cluster answers at the address.
    """
    _keep_what_ray_says()
    if ray.is_initialized():
        yield Cluster(joined=True)
        return
    address = spec.cluster.ray_address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave CUDA_VISIBLE_DEVICES to the user
    # A process for every core of the machine would be started ahead, and stay idle.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    if address:
        check_reachable(address)
    importing = threading.Thread(target=_import_ray_train, daemon=True)
    importing.start()
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        options["include_dashboard"] = False  # nobody looks at it, and it takes a core for seconds at the start
    try:
        # Without RAY_ADDRESS, "local" starts a new cluster even where another one runs on this machine.
        with contextlib.nullcontext() if address else _without_api_server():
            ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"no Ray cluster answers at {address}: {reason}" if address else f"Ray cannot start here: {reason}",
            f"check --ray_address (or RAY_ADDRESS); leave both out to start a local cluster; more: {_doctor(address)}",
        ) from None
    importing.join()
    try:
        yield Cluster(joined=bool(address))
    finally:
        ray.shutdown()


@contextmanager
def _without_api_server() -> Iterator[None]:
    """Ray 2.60 starts one and waits for it (1 to 3 s) also where no dashboard is wanted. Nothing in a run asks it."""
    from ray._private import services

    original = getattr(services, "start_api_server", None)
    if original is None:
        yield
        return
    services.start_api_server = lambda *args, **settings: (None, None)
    try:
        yield
    finally:
        services.start_api_server = original


RAY_SAID: collections.deque[str] = collections.deque(maxlen=20)
"""What Ray said last of workers and nodes that died, for the pages of failures."""


def _keep_what_ray_says() -> None:
    """Ray 2.60 prints that on standard output, page by page, and has no switch for it."""
    from ray._private import worker

    def keep(data: dict[str, Any], ignore_prefix: bool = False) -> None:
        RAY_SAID.extend(line[:500] for words in data["lines"] for line in str(words).splitlines()[:2])

    worker.print_to_stdstream = keep  # type: ignore[assignment]


def check_room(worker: Resources, tensor: int, num_workers: int) -> None:
    """Refuse what no placement can make good; what Ray then does is looked at when the workers are there
    (raymb.worker_setup).

    Args:
        tensor: size of a tensor parallel group.

    Raises:
        ClusterError: the nodes have room for the workers, but not for their tensor parallel groups.
    """
    need = worker.to_dict()
    rooms = [
        int(min(node["Resources"].get(name, 0.0) / each for name, each in need.items()) + 1e-6)
        for node in ray.nodes()
        if node["Alive"]
    ]
    if problem := room_problem(tensor, num_workers, rooms):
        raise ClusterError(problem, HINT)


def check_storage(directory: Path, joined: bool) -> None:
    """Have every node read a token in the directory and answer with one of its own.

    Args:
        joined: the cluster was there before this run; one that the run started is this machine alone.

    Raises:
        ClusterError: naming the nodes that do not see the directory, or cannot write there.
    """
    if not joined:
        return
    nodes = working_nodes()
    blind = blind_nodes(directory, nodes, _SECONDS_FOR_THE_STORAGE)
    if blind:
        lines = "\n  ".join(f"{name_of(node)}: {blind[node['NodeID']]}" for node in nodes if node["NodeID"] in blind)
        raise ClusterError(
            f"--storage_path {directory} is not one place for all nodes; not seen by\n  {lines}",
            "give a --storage_path on storage that every node mounts",
        )


def working_nodes() -> list[dict[str, Any]]:
    """Those that may get workers, as Ray describes them: a head without CPUs gets none."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def name_of(node: dict[str, Any]) -> str:
    """A node by everything that tells it from another one: nodes may share a machine, or its name."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, node {node['NodeID'][:8]})"


def blind_nodes(directory: Path, nodes: list[dict[str, Any]], seconds: float) -> dict[str, str]:
    """Have nodes read a token in a directory and answer with one of their own.

    Args:
        seconds: for all of them; a file system whose server is gone answers never.

    Returns:
        node id to what is wrong; nothing for a node that sees the directory.
    """
    token = uuid.uuid4().hex
    place = directory / f".seen-{token}"
    place.mkdir()
    try:
        (place / "driver").write_text(token)
        asked = {
            _answer_token.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(place), token, node["NodeID"]): node["NodeID"]
            for node in nodes
        }
        answers, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
        said = {node: f"no answer within {seconds:g} s" for node in asked.values()}
        said |= {asked[answer]: _said(answer) for answer in answers}
        said |= {
            node: "what it writes does not arrive here"
            for node, trouble in said.items()
            if not trouble and not (place / node).exists()
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {node: trouble for node, trouble in said.items() if trouble}


def _said(answer: Any) -> str:
    try:
        return ray.get(answer)
    except RayError as error:
        return last_line(error)[:300]


@ray.remote
def _answer_token(place: str, token: str, node: str) -> str:
    """What is wrong with the place on this node; "" if it can be read and written."""
    try:
        if Path(place, "driver").read_text() != token:
            return "another directory is there"
        Path(place, node).write_text(token)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def start_coordinator() -> None:
    """Start the actor that Ray Train's controller asks for resources first (3 CPU seconds of imports, during which the
    controller would wait), while the controller itself starts. Nothing is lost where Ray has no such actor."""
    with contextlib.suppress(ImportError):
        from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

        default_autoscaling_coordinator.get_or_create_autoscaling_coordinator()


def _doctor(address: str | None) -> str:
    """The command that tells what is wrong: versions, token, nodes."""
    return f"raymb doctor --ray_address {address}" if address else "raymb doctor"


def check_reachable(address: str) -> None:
    """Knock at HOST:PORT first: Ray itself goes on trying a dead address for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # `auto` and the like: Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "check --ray_address (or RAY_ADDRESS); leave both out to start a local cluster",
        ) from None


def _import_ray_train() -> None:
    """The driver's 6 CPU seconds of imports, done while Ray's own processes start."""
    import ray.train.torch  # noqa: F401


def wait_for(worker: Resources, num_workers: int, seconds: float, console: Console) -> None:
    """Wait until the cluster has the resources, asking its autoscaler for them; a line every 30 s.

    Raises:
        ClusterError: with what is asked and what there is, after `seconds`.
    """
    began = time.monotonic()
    said = began
    asked = False
    while missing := _missing(worker, num_workers):
        waited = time.monotonic() - began
        if not asked:
            asked = True
            _ask_autoscaler([worker.to_dict()] * num_workers)
        if waited >= seconds:
            raise ClusterError(
                f"the cluster has too little for {num_workers} workers: {missing}",
                "lower --num_workers or --cpus_per_worker, add nodes, or wait longer with --wait_for_resources SECONDS",
            )
        if time.monotonic() - said >= 30:
            said = time.monotonic()
            console.print(f"waiting for resources, {waited:.0f} of {seconds:.0f} s: {missing}", highlight=False)
        time.sleep(min(1.0, max(0.05, seconds - waited)))
    if asked:
        _ask_autoscaler([])  # from here on Ray Train asks for its own workers, and gives them back


def _missing(worker: Resources, num_workers: int) -> str:
    """What is asked and what there is, for each resource that falls short; "" when nothing does."""
    have = ray.cluster_resources()
    return ", ".join(
        f"{each * num_workers:g} {name}s asked ({each:g} for each worker), {have.get(name, 0):g} there"
        for name, each in worker.to_dict().items()
        if each * num_workers > have.get(name, 0) + 1e-6
    )


def _ask_autoscaler(bundles: list[dict[str, float]]) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles)

"""Which Ray cluster a command uses: --ray_address, else RAY_ADDRESS, else one that runs on this machine, else none.

Imports no Ray: `raymb plan` uses it, too, and takes less time than importing Ray.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from raymb.driver.ray_start import ray_directory
from raymb.errors import ClusterError

OWN = "local"
"""The value of --ray_address and RAY_ADDRESS for a cluster that starts and ends with the run."""
_SECONDS_FOR_A_NAMED_ONE = 10.0
_SECONDS_FOR_THE_LATEST = 2.0


@dataclass(frozen=True)
class RayAddress:
    """
    Args:
        address: as ray.init takes it; None for a cluster of the run's own.
        stale: address of the last cluster that was started on this machine, where it no longer answers; "" else.
    """

    address: str | None
    stale: str = ""


def is_connected() -> bool:
    """Whether this process is connected to a cluster already, as in a notebook."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)  # None too while a thread imports it
    return is_initialized is not None and is_initialized()


def joins_a_cluster(asked: str | None) -> bool:
    """Whether a run uses a cluster that is there before it.

    Args:
        asked: --ray_address, if it was given.
    """
    return is_connected() or find_ray(asked).address is not None


def find_ray(asked: str | None) -> RayAddress:
    """
    Args:
        asked: --ray_address, if it was given.
    """
    named = asked if asked not in (None, "auto") else os.environ.get("RAY_ADDRESS") or asked  # Ray's own order
    if named == OWN:
        return RayAddress(None)
    if named and named != "auto":
        return RayAddress(named)
    latest = latest_cluster()
    if latest and not _silence(latest, _SECONDS_FOR_THE_LATEST):
        return RayAddress(latest)
    return RayAddress("auto" if named else None, stale=latest)


def latest_cluster() -> str:
    """Address of the last cluster that `ray start` started on this machine, which may be gone; "" if there is none.

    Source: ray/_private/utils.py (read_ray_address) of Ray 2.60."""
    try:
        return (ray_directory() / "ray_current_cluster").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def init_argument(address: str) -> str | None:
    """The address for ray.init: None for the cluster that Ray finds by itself. To that one Ray shows this machine's
    token, which it was started with; to one that is named by its address, only with RAY_AUTH_MODE=token.
    """
    return None if address == latest_cluster() and not os.environ.get("RAY_ADDRESS") else address


def show_token(address: str) -> None:
    """The same for clients that do without ray.init; to be called before Ray is imported."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if init_argument(address) is None and (os.environ.get("RAY_AUTH_TOKEN") or token.is_file()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def check_reachable(address: str) -> None:
    """Knock at HOST:PORT first: Ray itself keeps trying a dead address for minutes.

    Raises:
        ClusterError: nobody listens there, or it is a job server's address.
    """
    if problem := job_server_problem(address):
        raise ClusterError(*problem)
    if silence := _silence(address, _SECONDS_FOR_A_NAMED_ONE):
        raise ClusterError(
            f"no Ray cluster answers at {address}: {silence}",
            f"check --ray_address (or RAY_ADDRESS); --ray_address {OWN} starts a cluster for this run",
        )


def job_server_problem(address: str) -> tuple[str, str] | None:
    """(what is wrong, the way out) where an address of the form http://HOST:8265 was given, as `ray job submit` takes
    it."""
    if not address.startswith(("http://", "https://")):
        return None
    host = address.partition("://")[2].partition("/")[0].rpartition(":")[0] or "HOST"
    return (
        f"{address} is the address of a job server, which takes jobs and no drivers",
        f"submit the run as a job: raymb submit ray --address {address} ...; or, where the cluster's port is open, "
        f"--ray_address {host}:6379 (or RAY_ADDRESS); {OWN} starts a cluster for this run",
    )


def _silence(address: str, seconds: float) -> str:
    """Why nobody answers at an address; "" if somebody does, or where only Ray can tell."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return ""  # `auto` and the like
    try:
        socket.create_connection((host, int(port)), timeout=seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""

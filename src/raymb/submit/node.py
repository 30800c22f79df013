"""A Ray cluster for one command, started by the same command on each of its nodes.

    python -m raymb.submit.node --rank 0 --head HOST:PORT -- raymb finetune --config spec.yaml

Rank 0 starts the head and runs the command on it, the others join; when the command ends, all end: rank 0 with its
exit code, the others with 0. SIGTERM to rank 0 is for the command alone, so that the cluster lives until the last
checkpoint is written. `ray symmetric-run` ends with `ray stop`, which would end every Ray cluster that the user has on
the node; this ends its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

SECONDS_FOR_THE_HEAD = 900.0
_LOST = 5
"""Failed knocks at the head, a second apart, after which it is taken as gone."""


def lead(host: str, port: int, start: Sequence[str], command: Sequence[str]) -> int:
    """Be the head. Returns the exit code of the command."""
    _say_whether_a_token_is_wanted()
    here = _address_of(host, SECONDS_FOR_THE_HEAD)
    if here is None:
        print(
            f"{host}, the head's own name, is not known to DNS here after {SECONDS_FOR_THE_HEAD:g} s", file=sys.stderr
        )
        return 1
    # A host that knows itself by a loopback address only (127.0.1.1 on Debian): Ray finds the one that others see.
    own_address = [] if here.startswith("127.") else [f"--node-ip-address={here}"]
    ray = _start(["--head", f"--port={port}", *own_address, *start])
    try:
        if not _answers(host, port, SECONDS_FOR_THE_HEAD, ray):
            print(f"ray start --head failed on {host}", file=sys.stderr)
            return 1
        driver = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": f"{host}:{port}"})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: driver.send_signal(signal.SIGTERM))
        return driver.wait()
    finally:
        _stop(ray)


def follow(host: str, port: int, start: Sequence[str]) -> int:
    """Join the head, and stay until it is gone."""
    _say_whether_a_token_is_wanted()
    if not _answers(host, port, SECONDS_FOR_THE_HEAD):
        print(f"no Ray head answers at {host}:{port}", file=sys.stderr)
        return 1
    there = _address_of(host, SECONDS_FOR_THE_HEAD) or host
    ray = _start([f"--address={there}:{port}", *start])
    try:
        missed = 0
        while ray.poll() is None and missed < _LOST:
            time.sleep(1)
            missed = 0 if _knock(host, port) else missed + 1
        return 0 if not _knock(host, port) else 1
    finally:
        _stop(ray)


def _say_whether_a_token_is_wanted() -> None:
    """Without RAY_AUTH_MODE a head of Ray 2.60 takes a token from the home directory; its driver takes none."""
    os.environ.setdefault("RAY_AUTH_MODE", "token" if "RAY_AUTH_TOKEN" in os.environ else "disabled")


def _start(words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start Ray in a session of its own, so that the terminal signals only the command. At its end Ray 2.60 would wait
    30 s for the node to drain, whose work has ended by then. A head's server for Ray clients gets a free port: where
    another head of the machine has 10001 already, the server ends, and `--block` all of Ray with it."""
    clients = [f"--ray-client-server-port={_free_port()}"] if "--head" in words else []
    start = ["start", "--block", "--disable-usage-stats", *clients, *words]
    command = [sys.executable, "-m", "ray.scripts.scripts", *start]
    environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, env=environment)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _stop(ray: subprocess.Popen[bytes]) -> None:
    """`ray start --block` ends the processes that it started."""
    ray.terminate()
    try:
        ray.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(ray.pid, signal.SIGKILL)


def _answers(host: str, port: int, seconds: float, ray: subprocess.Popen[bytes] | None = None) -> bool:
    """Wait for the head's port, as long as its process lives."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (ray is None or ray.poll() is None):
        if _knock(host, port):
            return True
        time.sleep(0.5)
    return False


def _address_of(host: str, seconds: float) -> str | None:
    """The address of a name, which may become known only after the node is up (Kubernetes, clouds)."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return socket.gethostbyname(host)
        except OSError:
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.5)


def _knock(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m raymb.submit.node", description=__doc__)
    parser.add_argument("--rank", type=int, required=True, help="0 is the head")
    parser.add_argument("--head", required=True, metavar="HOST:PORT")
    parser.add_argument("--ray", action="append", default=[], metavar="OPTION", help="of ray start; repeatable")
    parser.add_argument("command", nargs="+", help="what to run, after --")
    asked = parser.parse_args()
    host, _, port = asked.head.rpartition(":")
    if asked.rank == 0:
        return lead(host, int(port), asked.ray, asked.command)
    return follow(host, int(port), asked.ray)


if __name__ == "__main__":
    raise SystemExit(main())

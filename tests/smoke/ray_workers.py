"""Ray's worker processes forked from two that have imported what they do: Ray, Ray Train and torch, and the second one
Megatron, too, for those that train without faults. A run has some eight processes of 2 to 7 CPU seconds of imports.

`python -m tests.smoke.ray_workers PLACE` is these two; they fork for whoever asks at their sockets. A raylet that was
started within `forking_workers` runs this file where it would run Ray's two programs for its workers, and the process
that it starts hands over its command, environment and streams.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLACE = "SMOKE_WORKERS"
"""Where a raylet's processes find the first one's socket."""
_MEGATRON = "-megatron"


@contextmanager
def forking_workers(place: Path) -> Iterator[None]:
    """
    Args:
        place: of the socket; a short path.
    """
    from ray._private.parameter import RayParams

    from tests.smoke import forked

    if "COVERAGE_PROCESS_CONFIG" in os.environ:  # Ray's workers are measured as it starts them
        yield
        return
    words = [sys.executable, "-m", "tests.smoke.ray_workers", place]
    # Ray reads these two once, when it is imported: those of a worker that no job has asked for, and with whom it ends.
    own = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": str(os.getpid())}
    environment = {**os.environ, **forked.OF_SERVERS, **own}
    server = subprocess.Popen(words, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2], env=environment)
    while not (place.exists() and Path(f"{place}{_MEGATRON}").exists()):
        assert server.poll() is None
        time.sleep(0.05)
    os.environ[PLACE] = str(place)
    original = RayParams.update_if_absent

    def with_own_programs(self: Any, **values: Any) -> None:
        programs = {name: __file__ for name in ("worker_path", "setup_worker_path") if name in values}
        original(self, **values | programs)

    RayParams.update_if_absent = with_own_programs
    try:
        yield
    finally:
        RayParams.update_if_absent = original
        del os.environ[PLACE]
        server.communicate()


def ask(words: list[str]) -> None:
    """Of the server: to be a Ray worker in the place of this process."""
    given = {"words": words, "directory": os.getcwd(), "nice": os.nice(0), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ[PLACE] + (_MEGATRON if _trains(words) else ""))
        socket.send_fds(server, [json.dumps(given).encode()], [0, 1, 2])
        server.recv(1)


def _trains(words: list[str]) -> bool:
    """Whether a worker is one of CPU ranks that are to end well and do without Megatron-FSDP (which begins otherwise):
    the variables are those of raymb.driver.environment.worker_environment."""
    given = _of_setup(words)[0].get("env_vars", {})
    return given.get("CUDA_DEVICE_MAX_CONNECTIONS") == "1" and "RAYMB_FAULTS" not in given


def _of_setup(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """(the runtime environment that Ray's setup_worker.py is told of, the words that are default_worker.py's)."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--serialized-runtime-env-context", default="")
    parser.add_argument("--language")
    given, others = parser.parse_known_args([word for word in words if word != __file__])
    return json.loads(given.serialized_runtime_env_context or "{}"), others


def serve(place: str) -> None:
    from tests.smoke import forked

    for name in ("torch", "ray.train", "ray._private.workers.default_worker"):
        importlib.import_module(name)
    del sys.path[0]  # of `python -m`: the root of the repository
    if os.fork() == 0:
        forked.import_megatron()
        place += _MEGATRON
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(place)
        server.listen(64)
        while server in select.select([server, sys.stdin], [], [])[0]:
            asking, _ = server.accept()
            message, streams, *_ = socket.recv_fds(asking, 1 << 20, 3)
            if os.fork() == 0:
                server.close()
                asking.close()
                become_worker(streams=streams, **json.loads(message))
            for one in streams:
                os.close(one)
            asking.close()


def become_worker(streams: list[int], words: list[str], directory: str, nice: int, environment: dict[str, str]) -> None:
    """What Ray's setup_worker.py does before it starts default_worker.py, and Python before that."""
    from ray._private.utils import update_envs
    from ray._private.workers import default_worker
    from ray._raylet import Config

    from tests.smoke import forked

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(directory)
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    context, words = _of_setup(words)
    os.environ.clear()
    os.environ.update(environment)
    update_envs(context.get("env_vars", {}))
    forked.begin(dict(os.environ))
    Config.initialize("")  # from RAY_ variables: the first ones were those of the server
    sys.argv = [default_worker.__file__, *words]
    runpy.run_path(default_worker.__file__, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    if __spec__ is None:  # run as a file
        ask(sys.argv[1:])
    else:
        serve(sys.argv[1])

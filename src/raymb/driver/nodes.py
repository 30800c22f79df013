"""The nodes of a joined cluster, asked before the workers start: do they see the storage, have raymb and their GPUs?"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymb.errors import ClusterError, last_line

_SECONDS = 120.0
"""Seconds for all nodes together: a file system whose server is gone never answers."""
Node = dict[str, Any]
"""As ray.nodes() describes it."""


def working_nodes() -> list[Node]:
    """Those that may get workers: a head without CPUs gets none."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def name_of(node: Node) -> str:
    """A node by everything that tells it from another one: nodes may share a machine, or its name."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, node {node['NodeID'][-8:]})"


def check_nodes(directory: Path | None, backend: str, packages: Mapping[str, str] = MappingProxyType({})) -> None:
    """Whether the nodes can run this run's workers.

    Args:
        directory: that all must see; None where the storage is at a URI.
        backend: cuda or cpu; CPU workers take no GPU.
        packages: that a worker needs besides, the name that is imported to the name that is installed.

    Raises:
        ClusterError: naming the nodes, for the first kind of trouble that there is.
    """
    nodes = working_nodes()
    answers = ask_nodes(_what_is_there, nodes, _SECONDS, list(packages))
    said = {name_of(node): answers[node["NodeID"]] for node in nodes}
    _refuse(
        {name: answer for name, answer in said.items() if isinstance(answer, str)},
        "nodes do not answer",
        "look at `ray status`, and at the raylet's log in /tmp/ray there",
    )
    _refuse(
        {name: answer["raymb"] for name, answer in said.items() if answer["raymb"]},
        "raymb cannot be imported on every node of the cluster",
        "use an image for all nodes that has raymb; or, where they have its packages, upload raymb with the run: "
        "--working_dir .",
    )
    counted = {name_of(node): node["Resources"].get("GPU", 0) for node in nodes if backend == "cuda"}
    _refuse(
        {
            name: f"Ray counts {gpus:g} GPUs there, and CUDA finds {said[name]['gpus']}"
            for name, gpus in counted.items()
            if gpus > said[name]["gpus"]
        },
        "nodes have fewer GPUs than Ray was told",
        "see that `nvidia-smi` works there (driver loaded, container started with its GPUs), or start Ray there with "
        "the right --num-gpus; --backend cpu trains on CPUs",
    )
    _refuse(
        {name: ", ".join(answer["absent"]) for name, answer in said.items() if answer["absent"]},
        "the model's layers need CUDA kernels that nodes do not have",
        how_to_install(packages),
    )
    if directory is not None:
        without_storage = nodes_without(directory, nodes, _SECONDS)
        _refuse(
            {name_of(node): without_storage[node["NodeID"]] for node in nodes if node["NodeID"] in without_storage},
            f"--storage_path {directory} is not one place for all nodes; not seen by",
            "give a --storage_path on storage that every node mounts",
        )


def check_packages(packages: Mapping[str, str]) -> None:
    """The same question to this machine.

    Raises:
        ClusterError: some are not there.
    """
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        what = f"the model's layers need CUDA kernels that this machine does not have: {', '.join(absent)}"
        raise ClusterError(what, how_to_install(packages))


def how_to_install(packages: Mapping[str, str]) -> str:
    return f"pip install {' '.join(packages.values())}; --backend cpu trains on CPUs, without them"


def _refuse(troubles: dict[str, str], what: str, hint: str) -> None:
    if troubles:
        lines = "\n  ".join(f"{name}: {trouble}" for name, trouble in troubles.items())
        raise ClusterError(f"{what}\n  {lines}", hint)


def ask_nodes(question: Callable[[], Callable[..., Any]], nodes: Sequence[Node], seconds: float, *given: Any) -> dict:
    """Call a function on every node, beside what runs there.

    Args:
        question: returns a function that it defines: a nested function is pickled by value, so that the nodes need no
            raymb to unpickle it.
        seconds: for all nodes together.
        given: the function's arguments.

    Returns:
        node id to what the function returned, or a text that says why it did not.
    """
    task = ray.remote(question())
    asked = {
        task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(*given): node["NodeID"]
        for node in nodes
    }
    answers, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds) if asked else ([], [])
    silent = {node: f"no answer within {seconds:g} s" for node in asked.values()}
    return silent | {asked[answer]: _answer(answer) for answer in answers}


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except Exception as error:  # whatever the node's own Python raises
        return last_line(error)[:300]


def _what_is_there() -> Callable[[list[str]], dict[str, Any]]:
    def look(packages: list[str]) -> dict[str, Any]:
        """{"raymb": why it cannot be imported, "" if it can; "gpus": how many CUDA finds; "absent": packages}."""
        import ctypes
        import os
        from importlib.util import find_spec

        trouble, count = "", ctypes.c_int(0)
        try:
            import raymb.worker  # noqa: F401
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides GPUs from tasks that request none
        try:
            cuda = ctypes.CDLL("libcuda.so.1")
            if cuda.cuInit(0) == 0:
                cuda.cuDeviceGetCount(ctypes.byref(count))
        except OSError:  # no driver
            pass
        return {
            "raymb": trouble,
            "gpus": count.value,
            "absent": [name for name in packages if find_spec(name) is None],
        }

    return look


def nodes_without(directory: Path, nodes: Sequence[Node], seconds: float) -> dict[str, str]:
    """Have nodes read a token in a directory and answer with one of their own.

    Args:
        seconds: for all of them.

    Returns:
        node id to what is wrong; nothing for a node that sees the directory.
    """
    token = uuid.uuid4().hex
    place = directory / f".seen-{token}"
    place.mkdir()
    try:
        (place / "driver").write_text(token)
        said = ask_nodes(_answer_token, nodes, seconds, str(place), token)
        said |= {
            node: "what it writes does not arrive here"
            for node, trouble in said.items()
            if not trouble and not (place / node).exists()
        }
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {node: trouble for node, trouble in said.items() if trouble}


def _answer_token() -> Callable[[str, str], str]:
    def answer(place: str, token: str) -> str:
        """What is wrong with the place on this node; "" if it can be read and written."""
        from pathlib import Path

        import ray

        try:
            if Path(place, "driver").read_text() != token:
                return "another directory is there"
            Path(place, ray.get_runtime_context().get_node_id()).write_text(token)
        except OSError as error:
            return error.strerror or str(error)
        return ""

    return answer

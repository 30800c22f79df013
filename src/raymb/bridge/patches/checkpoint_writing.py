"""Processes and work that a checkpoint does not need."""

from __future__ import annotations

import importlib
import queue
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymb.bridge.patches.patch import Patch, text_of, upstream

_FILESYSTEM = "megatron.core.dist_checkpointing.strategies.filesystem_async"
_CONFIG = "megatron.bridge.training.config:ConfigContainer"
_TO_YAML = "megatron.training.config.container:ConfigContainerBase.to_yaml"
_STATE = "megatron.bridge.training.state:GlobalState"
_WRITER = "megatron.core.dist_checkpointing.strategies.async_utils:TemporalAsyncCaller.schedule_async_call"


def keep_write_results_in_process() -> None:
    """A plain queue does. An asynchronous save that writes in another process puts its own queue here."""
    filesystem_async = importlib.import_module(_FILESYSTEM)
    if getattr(filesystem_async, "_results_queue", "absent") is None:
        filesystem_async._results_queue = _PlainQueue()  # type: ignore[attr-defined]


class _PlainQueue(queue.Queue):
    """With the manager that Bridge shuts down when a run fails."""

    class _manager:
        @staticmethod
        def shutdown() -> None:
            pass


def build_config_text_once() -> None:
    """The configuration of a run does not change."""
    cls = upstream(_CONFIG)
    if hasattr(cls, "_raymb_to_yaml"):
        return
    cls._raymb_to_yaml = cls.to_yaml

    def to_yaml(self: Any, yaml_path: str) -> None:
        if hasattr(self, "_raymb_yaml"):
            Path(yaml_path).write_text(self._raymb_yaml, encoding="utf-8")
        else:
            self._raymb_to_yaml(yaml_path)
            self._raymb_yaml = Path(yaml_path).read_text(encoding="utf-8")

    cls.to_yaml = to_yaml


def write_with(make_queue: Callable[[], Any]) -> None:
    """Have Bridge give what it writes to a queue of raymb's (raymb.bridge.writes.Writes)."""

    def initialize(self: Any) -> None:
        self._async_calls_queue = make_queue()

    upstream(_STATE).initialize_async_checkpoint_worker = initialize


def _results_need_a_process() -> bool:
    queue_of_results = importlib.import_module(_FILESYSTEM)._results_queue
    return queue_of_results is None and "ctx.Manager().Queue()" in text_of(f"{_FILESYSTEM}:get_write_results_queue")


def _builds_the_text_anew() -> bool:
    built = []

    class Counted(upstream(_CONFIG)):
        def to_dict(self) -> dict[str, Any]:
            built.append(self)
            return {}

    config = object.__new__(Counted)
    with tempfile.TemporaryDirectory() as place:
        for _ in range(2):
            config.to_yaml(f"{place}/config.yaml")
    return len(built) == 2


def _writes_in_a_process() -> bool:
    makes_queue = "async_calls_queue_cls(" in text_of(f"{_STATE}.initialize_async_checkpoint_worker")
    return makes_queue and "ctx.Process(" in text_of(_WRITER)


PATCHES = (
    Patch(
        "results of writing in the process",
        "megatron-core",
        "0.19.2",
        f"{_FILESYSTEM}:get_write_results_queue",
        "the first torch_dist save starts a multiprocessing manager by spawn, whose child imports the main module "
        "again (7 s on 2 cores), to carry results between functions of one process",
        _results_need_a_process,
        keep_write_results_in_process,
    ),
    Patch(
        "text of the configuration built once",
        "megatron-core",
        "0.19.2",
        _TO_YAML,
        "every save builds the same YAML text anew, in Python, on one rank while the others wait: 0.11 s a checkpoint",
        _builds_the_text_anew,
        build_config_text_once,
    ),
    Patch(
        "writing on a thread",
        "megatron-core",
        "0.19.2",
        _WRITER,
        "an asynchronous save writes in a process for each rank, which imports torch and Megatron again (seconds of "
        "CPU time at every start and restart) and takes the tensors over shared memory",
        _writes_in_a_process,
        write_with,
    ),
)

"""The checks in their order, each with a limit of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from raymb.doctor.allreduce import check_allreduce
from raymb.doctor.cluster import check_cluster
from raymb.doctor.environment import check_environment, check_ray_start
from raymb.doctor.finding import Finding
from raymb.doctor.gpus import check_gpus
from raymb.doctor.hub import check_hub, parameters_of
from raymb.doctor.machine import Machine, disk_of, this_machine
from raymb.doctor.storage import check_disks, check_storage_path
from raymb.errors import last_line
from raymb.storage.remote import is_uri, storage_root

SECONDS = 60.0
"""Seconds that a check of this machine may take: a file system or driver that hangs would take for ever."""


@dataclass(frozen=True)
class Question:
    """What to look at.

    Args:
        model: --hf_model_path; None looks at no model.
        storage_path: a directory or a URI.
        address: of a Ray cluster; None looks at this machine alone.
        allreduce: measure the bandwidth, too.
        seconds: that the cluster, and the measurement, may take each.
    """

    model: str | None
    storage_path: str
    address: str | None
    allreduce: bool
    seconds: float


def examine(question: Question, tell: Callable[[str], None]) -> Iterator[Finding]:
    """Every finding, as soon as it is known.

    Args:
        tell: what is being looked at.
    """
    directory = None if is_uri(question.storage_path) else str(storage_root(question.storage_path))
    machine: list[Machine] = []
    parameters: list[int | None] = [None]

    def look() -> Iterator[Finding]:
        machine.append(this_machine(None))  # without the storage, which is what hangs
        yield from check_environment(machine[0])
        yield from check_ray_start(joins=question.address is not None)
        yield from check_gpus(machine[0])

    def look_at_storage() -> Iterator[Finding]:
        yield from check_storage_path(question.storage_path)
        parameters[0] = parameters_of(question.model)
        disks = {**machine[0].disks, **({"storage": disk_of(directory)} if directory else {})}
        yield from check_disks(replace(machine[0], disks=disks), parameters[0])

    tell("this machine")
    yield from _within(SECONDS, "environment", look)
    if not machine:
        return
    tell("storage")
    yield from _within(SECONDS, "storage", look_at_storage)
    tell("hub")
    yield from _within(SECONDS, "hub", lambda: check_hub(question.model))
    if question.address:
        of_cluster = list(check_cluster(question.address, directory, question.seconds, machine[0], parameters[0], tell))
        yield from of_cluster
        if any(finding.name == "join" for finding in of_cluster):
            return
    if question.allreduce:
        yield from check_allreduce(question.address, machine[0].devices, question.seconds, tell)


def _within(seconds: float, area: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check that may hang: in a thread that nobody waits for any longer than that, and that does not
    keep the process."""
    said: queue.Queue[Finding | BaseException | None] = queue.Queue()

    def run() -> None:
        try:
            for finding in check():
                said.put(finding)
            said.put(None)
        except BaseException as error:
            said.put(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        try:
            found = said.get(timeout=seconds)
        except queue.Empty:
            fix = "look for a file system, a driver or a network that does not answer"
            yield Finding(area, "time", "error", f"no answer within {seconds:g} s", fix)
            return
        if found is None:
            return
        if isinstance(found, BaseException):
            fix = "see whether what this error names works without raymb; if it does, report the error"
            yield Finding(area, "check", "error", f"it failed: {type(found).__name__}: {last_line(found)}", fix)
            return
        yield found

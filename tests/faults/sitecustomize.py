"""Faults in a worker process of a real run: on PYTHONPATH, Python imports this by itself when the process starts.

RAYMB_FAULTS is a JSON file: a list of {"do", "phase", "rank", "host", "step", "after", "actor", "seconds"}. Each
happens once, on the first start of the workers in which its rank, or a rank on its host, comes to its phase with so
many steps done (any number if there is no "step"), and fault number "after" has happened in an earlier start. The rank
waits "seconds" after it.

do: kill (SIGKILL to itself), machine (SIGKILL to every process on a host that has its own name), other (SIGKILL to the
process of "actor", on this node), pause (SIGSTOP to it for 12 seconds), stop (SIGSTOP), term (SIGTERM), nan (the next
forward pass gives NaN), raise, memory (CUDA is out of it), clock (the wall clock jumps a day ahead), spoil (what is
exported from then on is not what was trained), slow (each tensor is exported half a second late), nothing.
phase: importing, loading, first step, step (the next forward pass), saving, writing (the thread that writes a
checkpoint), validating, exporting.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

BEGAN = time.time()


def install(file: Path) -> None:
    from raymb.rank import progress

    enter, beat, begin = progress.Progress.enter, progress.Progress.beat, progress.Progress.__init__

    def watched_begin(self):
        begin(self)
        threading.Timer(1.0, look, (file, self, "importing")).start()

    def watched_enter(self, phase):
        enter(self, phase)
        look(file, self, phase)

    def watched_beat(self):
        beat(self)
        if self.phase in ("step", "first step"):
            look(file, self, "step")
        watch_the_writer(file, self)

    progress.Progress.__init__, progress.Progress.enter, progress.Progress.beat = (
        watched_begin,
        watched_enter,
        watched_beat,
    )


def watch_the_writer(file, progress):
    from raymb.bridge.writes import Writes

    if hasattr(Writes, "unwatched"):
        return
    Writes.unwatched = Writes._write

    def watched(self, *arguments):
        look(file, progress, "writing")
        self.unwatched(*arguments)

    Writes._write = watched


def look(file: Path, progress, phase: str) -> None:
    for number, fault in enumerate(json.loads(file.read_text())):
        if "after" in fault and not happened_before(file, fault["after"]):
            continue
        rank, host = int(os.environ.get("RANK", "-1")), socket.gethostname()
        here = fault["phase"] == phase and fault.get("rank", rank) == rank and fault.get("host", host) == host
        if here and fault.get("step", progress.step) == progress.step and first_time(file, number):
            happen(fault["do"], fault.get("actor", ""))
            time.sleep(fault.get("seconds", 0))


def happened_before(file: Path, number: int) -> bool:
    mark = file.with_name(f"{file.name}.{number}")
    return mark.exists() and mark.stat().st_mtime < BEGAN


def first_time(file: Path, number: int) -> bool:
    try:
        file.with_name(f"{file.name}.{number}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def happen(what: str, actor: str) -> None:
    if what == "spoil":
        change_exports(lambda tensor: tensor * 1.1)
    elif what == "slow":
        change_exports(lambda tensor: time.sleep(0.5) or tensor)
    elif what == "other":
        os.kill(process_of(actor), signal.SIGKILL)
    elif what == "pause":
        os.kill(other := process_of(actor), signal.SIGSTOP)
        threading.Timer(12, os.kill, (other, signal.SIGCONT)).start()
    elif what in ("kill", "stop", "term"):
        time.sleep(0.3)  # long enough for word of the phase to get out
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[what])
    elif what == "machine":
        end_this_machine()
    elif what == "raise":
        raise RuntimeError("a fault of the test")
    elif what == "memory":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    elif what == "nan":
        poison_a_forward_pass()
    elif what == "clock":
        real = time.time
        time.time = lambda: real() + 86400


def change_exports(change) -> None:
    from raymb.bridge import export

    right = export.converted
    export.converted = lambda tensor, *types: change(right(tensor, *types))


def process_of(actor: str) -> int:
    """The one of this run: former ones of the same driver may still be there."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            beside, begun = int(fields[1]) == os.getppid(), int(fields[19])
            if beside and (place / "cmdline").read_text().startswith(f"ray::{actor}"):
                found.append((begun, int(place.name)))
    return max(found)[1]


def end_this_machine() -> None:
    def name_space(process: int) -> str:
        return os.readlink(f"/proc/{process}/ns/uts")

    assert socket.gethostname().startswith("machine-"), "only one that a test has made"
    own = name_space(os.getpid())
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(place.name) != os.getpid() and name_space(int(place.name)) == own:
                os.kill(int(place.name), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def poison_a_forward_pass() -> None:
    import torch

    def poison(module, inputs, output):
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            handle.remove()
            return output * float("nan")
        return None

    handle = torch.nn.modules.module.register_module_forward_hook(poison)


if os.environ.get("RAYMB_FAULTS"):
    install(Path(os.environ["RAYMB_FAULTS"]))

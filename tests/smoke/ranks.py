"""Training without Ray: a process imports Megatron once and forks the ranks of one job after the other, so that no
layout pays for imports (4 CPU seconds a rank) and none has anything of a former one.

`python -m tests.smoke.ranks` takes a line for each job, {"job": job.json, "workers": how many}, and answers with the
exit code of its first rank that failed, or 0. Beside job.json a job leaves metrics.jsonl, ranks.log and, of a run with
adapters, those that it began with in ../adapter: the oracle needs them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from raymb import worker
from raymb.driver.environment import worker_environment
from raymb.export.during import Exports
from raymb.rank.accelerator import ACCELERATORS
from raymb.rank.progress import Progress
from raymb.run.job import Job
from tests.smoke import forked

_END_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print
    forked.import_megatron()
    gc.freeze()
    for line in sys.stdin:
        print(_run(**json.loads(line)), file=answers, flush=True)


def _run(job: str, workers: int) -> int:
    """Train with so many ranks; where one fails the others are ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {_fork(Path(job), rank, workers, port) for rank in range(workers)}
    code = 0
    while ranks:
        rank, status = os.wait()
        ranks.discard(rank)
        if status and not code:
            code = os.waitstatus_to_exitcode(status)
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    return code


def _fork(job: Path, rank: int, workers: int, port: int) -> int:
    if pid := os.fork():
        return pid
    ctypes.CDLL(None).prctl(_END_WITH_PARENT, signal.SIGKILL)
    log = os.open(job.with_name("ranks.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    given = Job.from_json(job.read_text())
    place = {"RANK": rank, "WORLD_SIZE": workers, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": workers}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = {**worker_environment(given), **{name: str(value) for name, value in place.items()}}
    forked.begin({**os.environ, **own})
    train(given, job)
    sys.exit()


def train(job: Job, place: Path) -> None:
    """A rank, in an environment as Ray Train gives it.

    Args:
        place: of job.json.
    """
    accelerator = ACCELERATORS[job.backend]
    worker.join_process_group(accelerator.distributed_backend, accelerator.device(), job.spec.resilience.nccl_timeout)
    metrics = place.with_name("metrics.jsonl").open("a", encoding="utf-8")

    def emit(record: dict[str, Any]) -> None:
        if "grad_norm" in record:  # the part of a step that the driver makes its line of
            record = {**record, "kind": "train"}
        if record["kind"] in ("train", "validation", "test", "export"):
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()

    _export_adapters_at_start(place.parents[1] / "adapter")
    left = worker.train(job, Progress(), emit, lambda *args: None, worker.make_stop())
    if left is not None:
        Exports(job, emit, lambda: None).conclude(left)


def _export_adapters_at_start(directory: Path) -> None:
    """The adapters as the training begins with them, for PEFT to train the same ones."""
    prepare = worker.prepare

    def prepare_and_export(job: Job, progress: Progress, emit: Any) -> Any:
        config, hf_bridge, losses = prepare(job, progress, emit)
        from megatron.bridge.training.callbacks import Callback

        import raymb.bridge.callbacks as ours
        from raymb.bridge.export_adapter import write_adapter

        class Export(Callback):
            def on_train_start(self, context: Any) -> None:
                directory.mkdir(exist_ok=True)
                write_adapter(hf_bridge, context.model, config.peft, job, directory)

        make = ours.make_callbacks
        if config.peft is not None:
            ours.make_callbacks = lambda *args: [*make(*args), Export()]
        return config, hf_bridge, losses

    worker.prepare = prepare_and_export


if __name__ == "__main__":
    serve()

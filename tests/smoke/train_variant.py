"""`torchrun train_variant.py JOB.json OUT`: a job trained without Ray. Writes OUT/steps.json (loss and grad norm of
each step) and OUT/adapter: of a run with adapters those that it began with, which the oracle needs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from raymb import worker
from raymb.bridge.patches import imports
from raymb.export.during import Exports
from raymb.rank.accelerator import ACCELERATORS
from raymb.rank.progress import Progress
from raymb.run.job import Job


def main() -> None:
    job, out = Job.from_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    accelerator = ACCELERATORS[job.backend]
    worker.join_process_group(accelerator.distributed_backend, accelerator.device(), job.spec.resilience.nccl_timeout)
    prepare = worker.prepare
    callbacks: list[Any] = []

    def prepare_variant(job: Job, progress: Progress, emit: Any) -> Any:
        config, hf_bridge, losses = prepare(job, progress, emit)
        callbacks.extend(_export_at_start(job, config, hf_bridge, out) if config.peft is not None else [])
        import raymb.bridge.callbacks as ours

        make = ours.make_callbacks
        ours.make_callbacks = lambda *args: [*make(*args), *callbacks]
        return config, hf_bridge, losses

    worker.prepare = prepare_variant
    steps: list[dict[str, Any]] = []

    def emit(record: dict[str, Any]) -> None:
        if "grad_norm" in record:
            steps.append(record)

    left = worker.train(job, Progress(), emit, lambda *args: None, worker.make_stop())
    if left is not None:
        Exports(job, emit, lambda: None).conclude(left)
    if steps:
        (out / "steps.json").write_text(json.dumps(steps))


def _export_at_start(job: Job, config: Any, hf_bridge: Any, out: Path) -> list[Any]:
    """The adapters as the training begins with them, for PEFT to train the same ones."""
    from megatron.bridge.training.callbacks import Callback

    from raymb.bridge.export_adapter import write_adapter

    class Export(Callback):
        def on_train_start(self, context: Any) -> None:
            (out / "adapter").mkdir(exist_ok=True)
            write_adapter(hf_bridge, context.model, config.peft, job, out / "adapter")

    return [Export()]


if __name__ == "__main__":
    imports.install()
    main()

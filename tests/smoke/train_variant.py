"""`torchrun train_variant.py JOB.json plain|lora OUT`: a job trained without Ray; no flag reaches LoRA yet. Writes
OUT/steps.json (loss and grad norm of each step) and what the oracle needs: OUT/adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from raymb import worker
from raymb.accelerator import ACCELERATORS
from raymb.bridge import imports
from raymb.job import Job
from raymb.progress import Progress


def main() -> None:
    job, variant, out = Job.from_json(Path(sys.argv[1]).read_text()), sys.argv[2], Path(sys.argv[3])
    accelerator = ACCELERATORS[job.backend]
    worker.join_process_group(accelerator.distributed_backend, accelerator.device())
    prepare = worker.prepare
    callbacks: list[Any] = []

    def prepare_variant(job: Job, progress: Progress, emit: Any) -> Any:
        config, hf_bridge, losses = prepare(job, progress, emit)
        callbacks.extend(_add_lora(job, config, hf_bridge, out) if variant == "lora" else [])
        import raymb.bridge.callbacks as ours

        make = ours.make_callbacks
        ours.make_callbacks = lambda *args: [*make(*args), *callbacks]
        return config, hf_bridge, losses

    worker.prepare = prepare_variant
    steps: list[dict[str, Any]] = []

    def emit(record: dict[str, Any]) -> None:
        if "grad_norm" in record:
            steps.append(record)

    worker.train(job, Progress(), emit, lambda *args: None, worker.make_stop())
    if steps:
        (out / "steps.json").write_text(json.dumps(steps))


def _add_lora(job: Job, config: Any, hf_bridge: Any, out: Path) -> list[Any]:
    """LoRA on each of the Hugging Face projections, so that PEFT can train the same adapter."""
    from megatron.bridge.peft.canonical_lora import CanonicalLoRA
    from megatron.bridge.training.callbacks import Callback

    config.peft = CanonicalLoRA(dim=4, alpha=8, lora_B_init_method="normal")
    config.checkpoint.pretrained_checkpoint = job.model_path

    class Export(Callback):
        def on_train_start(self, context: Any) -> None:
            hf_bridge.save_hf_adapter(context.model, out / "adapter", config.peft, job.model_path, show_progress=False)

    return [Export()]


if __name__ == "__main__":
    imports.install()
    main()

"""`torchrun train_variant.py JOB.json packed|lora OUT`: a job trained with a setting that no flag reaches yet. Writes
OUT/steps.json (loss and grad norm of each step) and what the oracle needs: OUT/batches.pt or OUT/adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from raymb import worker
from raymb.bridge import imports
from raymb.job import Job


def main() -> None:
    job, variant, out = Job.from_json(Path(sys.argv[1]).read_text()), sys.argv[2], Path(sys.argv[3])
    prepare = worker.prepare
    callbacks: list[Any] = []

    def prepare_variant(job: Job, emit: Any) -> Any:
        config, hf_bridge = prepare(job, emit)
        callbacks.extend({"packed": _pack, "lora": _add_lora}[variant](job, config, hf_bridge, out))
        import raymb.bridge.callbacks as ours

        make = ours.make_callbacks
        ours.make_callbacks = lambda *args: [*make(*args), *callbacks]
        return config, hf_bridge

    worker.prepare = prepare_variant
    steps: list[dict[str, Any]] = []
    worker.train(job, lambda record: steps.append(record) if "grad_norm" in record else None, lambda *args: None)
    if steps:
        (out / "steps.json").write_text(json.dumps(steps))


def _pack(job: Job, config: Any, hf_bridge: Any, out: Path) -> list[Any]:
    from megatron.bridge.data.packing import PackedSequenceSpecs
    from megatron.bridge.training.callbacks import Callback

    context = job.plan["context_parallel_size"]
    multiple = 2 * context * job.plan["tensor_parallel_size"] if context > 1 else 1
    config.dataset.enable_offline_packing = True
    config.dataset.offline_packing_specs = PackedSequenceSpecs(
        packed_sequence_size=job.spec.data.seq_length, pad_seq_to_mult=multiple, num_tokenizer_workers=1
    )

    class Dump(Callback):
        """The packed rows in the order of the training, on the first rank."""

        def on_train_start(self, context: Any) -> None:
            import torch

            batches = _batches(job, config)  # collective
            if torch.distributed.get_rank() == 0:
                torch.save(batches, out / "batches.pt")

    return [Dump()]


def _batches(job: Job, config: Any) -> list[Any]:
    import torch
    from megatron.bridge.data.builders.gpt_sft import GPTSFTDatasetBuilder
    from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer

    builder = GPTSFTDatasetBuilder(config.dataset, tokenizer=build_tokenizer(config.tokenizer))
    dataset = builder.build()[0]
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(job.spec.train.seed)).tolist()
    size = job.spec.train.global_batch_size
    steps = range(0, job.spec.train.train_iters * size, size)
    assert steps[-1] + size <= len(dataset), "one epoch is enough here"
    return [dataset.collate_fn([dataset[index] for index in order[start : start + size]]) for start in steps]


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

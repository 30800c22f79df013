"""torchrun bench_trl.py JOB.json ddp|fsdp2 MICRO_BATCH METRICS.jsonl: what a user would take instead of raymb, at its
best, on a raymb job's rows, batches, learning rates and optimizer.

TRL's SFTTrainer with its fused output layer, Liger's kernels, torch's fused AdamW, SDPA and bf16 over fp32 weights;
LoRA by PEFT on bf16 weights. Prints an object a step.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from raymb.data.store import RowFile


def main() -> None:
    job, kind, micro = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2], int(sys.argv[3])
    steps = [json.loads(line) for line in Path(sys.argv[4]).read_text(encoding="utf-8").splitlines()]
    rates = [step["learning_rate"] for step in steps if step["kind"] == "train"]
    peft = job["spec"]["peft"]
    trainer = _Trainer(
        make_model(job, whole=peft["peft"] == "none"),
        settings(job, kind, micro),
        train_dataset=rows_of(job),
        processing_class=AutoTokenizer.from_pretrained(job["model_path"]),
        peft_config=adapters(peft) if peft["peft"] != "none" else None,
        callbacks=[_Clock()],
    )
    trainer.rates = rates
    trainer.train()


class _Trainer(SFTTrainer):
    rates: list[float]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """raymb's learning rate of each step."""
        top = max(self.rates)
        given: Any = optimizer or self.optimizer
        self.lr_scheduler = LambdaLR(given, lambda step: [*self.rates, 0.0][step] / top)
        return self.lr_scheduler

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        rows: Any = self.train_dataset
        return SequentialSampler(rows)


class _Clock(TrainerCallback):
    """Prints each step's seconds and loss."""

    began = 0.0
    seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            shown = {"step": state.global_step, "seconds": self.seconds, "time": time.time(), "memory": memory}
            print("\n" + json.dumps({**shown, "loss": logs["loss"], "grad_norm": logs["grad_norm"]}), flush=True)


def settings(job: dict[str, Any], kind: str, micro: int) -> SFTConfig:
    optimizer, plan, on_gpu = job["spec"]["optimizer"], job["plan"], job["backend"] == "cuda"
    ranks = int(os.environ["WORLD_SIZE"])
    if kind == "fsdp2":  # as `accelerate launch --use_fsdp --fsdp_version 2` sets them
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false"}
        os.environ |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
        os.environ |= {"ACCELERATE_MIXED_PRECISION": "bf16"}
    return SFTConfig(
        output_dir=str(Path(job["run_dir"], "trl")),
        max_steps=plan["train_iters"],
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=plan["global_batch_size"] // micro // ranks,
        learning_rate=optimizer["learning_rate"],
        adam_beta1=optimizer["adam_beta1"],
        adam_beta2=optimizer["adam_beta2"],
        adam_epsilon=optimizer["adam_eps"],
        weight_decay=optimizer["weight_decay"],
        max_grad_norm=optimizer["clip_grad"],
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        use_liger_kernel=on_gpu,
        gradient_checkpointing=plan["recompute"] == "full",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        dataloader_num_workers=2,
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def make_model(job: dict[str, Any], whole: bool) -> Any:
    dtype = torch.float32 if whole or job["backend"] != "cuda" else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(job["model_path"], dtype=dtype, attn_implementation="sdpa")


def adapters(peft: dict[str, Any]) -> Any:
    from peft import LoraConfig

    targets = [name for name in peft["lora_target_modules"] if name != "all-linear"] or "all-linear"
    return LoraConfig(r=peft["lora_rank"], lora_alpha=peft["lora_alpha"], target_modules=targets, task_type="CAUSAL_LM")


def rows_of(job: dict[str, Any]) -> Dataset:
    """In raymb's order, of one epoch: Bridge's permutation."""
    rows, plan = RowFile(Path(job["data_dir"], "train.arrow")), job["plan"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(job["spec"]["train"]["seed"])).tolist()
    found: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for index in (order * plan["train_iters"])[: plan["train_iters"] * plan["global_batch_size"]]:
        row, length = rows[index], plan["seq_length"]  # a row may have the label of its last input besides
        ids = row["input_ids"][:length].tolist()
        found["input_ids"].append(ids)
        found["labels"].append([one if kept else -100 for one, kept in zip(ids, row["trained"], strict=False)])
    return Dataset.from_dict(found)


if __name__ == "__main__":
    main()

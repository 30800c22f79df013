"""torchrun bench_hugging_face.py JOB.json ddp|fsdp2: the rows, batches and optimizer of a raymb job, trained with
transformers (SDPA), torch's DDP or FSDP2, fused AdamW, bf16 autocast over fp32 weights; LoRA by PEFT, on bf16 weights.
Prints an object a step."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from raymb.data.store import RowFile


def main() -> None:
    job, kind = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), sys.argv[2]
    on_gpu = job["backend"] == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    peft = job["spec"]["peft"]
    plain = wrapped = make_model(job, peft, on_gpu).to(device)
    if kind == "ddp":
        ids = [device.index] if on_gpu else None
        wrapped = torch.nn.parallel.DistributedDataParallel(plain, device_ids=ids, gradient_as_bucket_view=True)
    else:
        shard(plain)
    trained = [one for one in plain.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job["spec"]["optimizer"]["learning_rate"], fused=on_gpu)
    batch, micro = job["plan"]["global_batch_size"], micro_batch_size(job)
    count = batch // micro // dist.get_world_size()
    rows = batches(job, micro, device)
    for step in range(1, job["plan"]["train_iters"] + 1):
        began, total = time.perf_counter(), torch.zeros((), device=device)
        for index in range(count):
            last = index == count - 1
            if kind == "ddp":
                wrapped.require_backward_grad_sync = last
            else:
                plain.set_requires_gradient_sync(last)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                loss = wrapped(**next(rows)).loss / count
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = total.item()
        if dist.get_rank() == 0:
            memory = torch.cuda.max_memory_allocated() if on_gpu else 0
            shown = {"step": step, "seconds": time.perf_counter() - began, "time": time.time(), "loss": loss}
            print(json.dumps({**shown, "memory": memory}), flush=True)
    dist.destroy_process_group()


def make_model(job: dict[str, Any], peft: dict[str, Any], on_gpu: bool) -> Any:
    adapters = peft["peft"] != "none"
    dtype = torch.bfloat16 if adapters and on_gpu else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(job["model_path"], dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    if job["plan"]["recompute"] == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not adapters:
        return model
    from peft import LoraConfig, get_peft_model

    targets = [name for name in peft["lora_target_modules"] if name != "all-linear"] or "all-linear"
    settings = LoraConfig(r=peft["lora_rank"], lora_alpha=peft["lora_alpha"], target_modules=targets)
    return get_peft_model(model, settings)


def shard(model: Any) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in base.model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def micro_batch_size(job: dict[str, Any]) -> int:
    """HF_MICRO_BATCH_SIZE, else raymb's, as far as it divides the batch among the ranks (raymb may share a copy)."""
    share = job["plan"]["global_batch_size"] // dist.get_world_size()
    size = int(os.environ.get("HF_MICRO_BATCH_SIZE") or job["plan"]["micro_batch_size"])
    while share % size:
        size -= 1
    return size


def batches(job: dict[str, Any], micro: int, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Padded to the sequence length, as raymb's are."""
    rows, length = RowFile(Path(job["data_dir"], "train.arrow")), job["plan"]["seq_length"]
    index = dist.get_rank() * micro
    while True:
        ids = torch.full((micro, length), job["pad_id"])
        labels = torch.full((micro, length), -100)
        for place in range(micro):
            row = rows[(index + place) % len(rows)]
            count = min(len(row["input_ids"]), length)  # a row may have the label of its last input besides
            ids[place, :count] = torch.as_tensor(row["input_ids"][:count])
            trained = torch.as_tensor(row["trained"][:count]).bool()
            labels[place, :count] = torch.where(trained, ids[place, :count], -100)
        index += micro * dist.get_world_size()
        yield {"input_ids": ids.to(device, non_blocking=True), "labels": labels.to(device, non_blocking=True)}


if __name__ == "__main__":
    main()

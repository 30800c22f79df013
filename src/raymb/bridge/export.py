"""The trained Megatron model to a Hugging Face directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.bridge.models.conversion.auto_bridge import AutoBridge

from raymb.bridge.tensor_files import check_same_tensors, trim_vocabulary
from raymb.data.store import read_manifest
from raymb.job import Job


def write_hf_model(hf_bridge: AutoBridge, model: list[Any], job: Job) -> None:
    """Write and check the job's hf_dir; collective, called on every rank. It appears whole or not at all, and
    replaces an older export.

    Args:
        model: this rank's model chunks.

    Raises:
        RunFailed: the export's tensors are not those of the model that the training started from.
    """
    target = Path(job.hf_dir)
    partial = target.with_name(f".{target.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    hf_bridge.save_hf_pretrained(model, str(partial), show_progress=False)
    dist.barrier()
    if dist.get_rank() == 0:
        trim_vocabulary(partial, job.plan["padded_vocab_size"], job.vocab_size)
        check_same_tensors(partial, Path(job.model_path))
        if template := _chat_template(job):
            (partial / "chat_template.jinja").write_text(template, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    dist.barrier()


def _chat_template(job: Job) -> str | None:
    """The text of --chat_template, as the rows were prepared with it: the tuned model is asked in the same words."""
    manifest = read_manifest(Path(job.data_dir))
    return manifest["key"]["settings"]["chat_template"] if manifest else None

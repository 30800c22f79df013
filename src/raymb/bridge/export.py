"""The trained Megatron model, or its adapters, to a Hugging Face directory."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.bridge.models.conversion.auto_bridge import AutoBridge

from raymb.bridge.adapters import base_directory, make_adapters
from raymb.bridge.export_adapter import write_adapter
from raymb.bridge.tensor_files import check_same_tensors, trim_vocabulary
from raymb.data.store import read_manifest
from raymb.job import Job


def write_results(hf_bridge: AutoBridge, model: list[Any], job: Job) -> list[Path]:
    """Write what a run is for: the model, or its adapters (and with --merge the model that they make); collective,
    called on every rank. Each directory appears whole or not at all, and replaces an older one.

    Args:
        model: this rank's model chunks.

    Returns:
        the directories.

    Raises:
        RunFailed: the export's tensors are not those of the model that the training started from.
    """
    adapters = make_adapters(job)
    if adapters is None:
        with _appearing(Path(job.hf_dir)) as partial:
            _write_model(hf_bridge, model, job, partial)
        return [Path(job.hf_dir)]
    with _appearing(Path(job.adapter_dir)) as partial:
        write_adapter(hf_bridge, model, adapters, job.model_path, partial)
        if dist.get_rank() == 0:
            hf_bridge.hf_pretrained.save_artifacts(partial)
            (partial / "config.json").unlink(missing_ok=True)  # of a whole model, which this is not
            _write_template(job, partial)
    if not job.spec.checkpoint.merge:
        return [Path(job.adapter_dir)]
    with _appearing(Path(job.hf_dir)) as partial:
        if dist.get_rank() == 0:
            from raymb.bridge.merge import merge

            merge(Path(base_directory(job)), Path(job.adapter_dir), partial)
            check_same_tensors(partial, Path(job.model_path))
            _write_template(job, partial)
    return [Path(job.adapter_dir), Path(job.hf_dir)]


def _write_model(hf_bridge: AutoBridge, model: list[Any], job: Job, partial: Path) -> None:
    hf_bridge.save_hf_pretrained(model, str(partial), show_progress=False)
    dist.barrier()
    if dist.get_rank() == 0:
        trim_vocabulary(partial, job.plan["padded_vocab_size"], job.vocab_size)
        check_same_tensors(partial, Path(job.model_path))
        _write_template(job, partial)


@contextlib.contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """An empty directory for the ranks to fill, which then takes the target's place. Collective."""
    partial = target.with_name(f".{target.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    yield partial
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    dist.barrier()


def _write_template(job: Job, directory: Path) -> None:
    """The text of --chat_template, as the rows were prepared with it: the tuned model is asked in the same words."""
    manifest = read_manifest(Path(job.data_dir))
    template = manifest["key"]["settings"]["chat_template"] if manifest else None
    if template:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")

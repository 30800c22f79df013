"""The trained Megatron model, or its adapters, to Hugging Face directories, not yet verified (raymb.export.verify)."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.bridge.models.conversion.auto_bridge import AutoBridge

from raymb.bridge.adapters import Adapters, make_adapters
from raymb.bridge.collectives import wait_for_first
from raymb.bridge.export_adapter import write_adapter
from raymb.bridge.reference import write_reference
from raymb.bridge.rounding import as_written
from raymb.data.store import read_manifest
from raymb.model.merge import tensors_of
from raymb.model.source_files import name_tokenizer_class, write_source_files
from raymb.model.stop_tokens import add_stop_tokens
from raymb.model.tensor_files import (
    TensorFiles,
    converted,
    prediction_tensors,
    tensor_types,
    trimmed,
    type_to_write,
)
from raymb.rank.accelerator import precision_of
from raymb.rank.progress import Progress
from raymb.run.job import Job
from raymb.run.unverified import UnverifiedExport, VerificationRequest, or_nothing


def write_results(hf_bridge: AutoBridge, model: list[Any], job: Job, progress: Progress) -> UnverifiedExport:
    """Write what a run is for beside where it is to be: the model, or its adapters (and with --merge all but the
    tensors of the model that they make, for which no rank is needed). Collective, called on every rank.

    Args:
        model: this rank's model chunks.
        progress: is told of each tensor.

    Raises:
        RunFailed: the file system does not take it; nothing is left then.
    """
    whole = job.plan.adapters is None
    wanted = [*([] if whole else [job.adapter_dir]), *([job.hf_dir] if whole or job.spec.checkpoint.merge else [])]
    directories = {path: path.with_name(f".{path.name}.partial") for path in map(Path, wanted)}
    first = next(iter(directories.values()))
    reference = first.with_name(f"{first.name}.reference.safetensors")
    template = _template(job)
    with or_nothing([*directories.values(), reference]):
        if dist.get_rank() == 0:
            for partial in directories.values():
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        dist.barrier()
        rounding = as_written(hf_bridge, model, job) if whole else contextlib.nullcontext(False)
        write_reference(model, job, reference, rounding)
        if whole:
            _write_model(hf_bridge, model, job, first, progress)
        else:
            write_adapter(hf_bridge, model, _adapters(job), job, first)
        if dist.get_rank() == 0:
            _write_small_files(hf_bridge, job, directories, template)
            trained = (read_manifest(Path(job.data_dir)) or {}).get("stop_tokens", [])
            for partial in directories.values():
                add_stop_tokens(partial, Path(job.model_path), trained)
        wait_for_first(progress)
    request = VerificationRequest(
        base=job.model_path,
        model=str(directories.get(Path(job.hf_dir), "")),
        adapter=str(directories.get(Path(job.adapter_dir), "")),
        reference=str(reference),
        precision=precision_of(job),
        trust_remote_code=job.spec.model.trust_remote_code,
        chat_template=template,
    )
    merged = not whole and job.spec.checkpoint.merge
    return UnverifiedExport(directories, request, job.threads, job.spec.checkpoint.export_dtype if merged else None)


def _adapters(job: Job) -> Adapters:
    adapters = make_adapters(job)
    assert adapters is not None
    return adapters


def _write_small_files(hf_bridge: AutoBridge, job: Job, directories: dict[Path, Path], template: str | None) -> None:
    """The tuned model is asked in the words that it was tuned with, and config.json names the type of its tensors."""
    asked = job.spec.checkpoint.export_dtype
    dtype = None if asked == "source" else type_to_write(asked, None)
    for target, partial in directories.items():
        write_source_files(Path(job.model_path), partial, dtype=dtype, template=template)
        if target == Path(job.adapter_dir):
            (partial / "config.json").unlink()  # of a whole model, which this is not
            name_tokenizer_class(partial, type(hf_bridge.hf_pretrained.tokenizer).__name__)


def _write_model(hf_bridge: AutoBridge, model: list[Any], job: Job, partial: Path, progress: Progress) -> None:
    """A tensor at a time: rank 0 holds no more than a file, the others no more than a tensor. Layers of multi-token
    prediction, which are not trained, are the source's."""
    files = TensorFiles(partial) if dist.get_rank() == 0 else None
    source, asked = Path(job.model_path), job.spec.checkpoint.export_dtype
    types = tensor_types(source)
    untrained = set(prediction_tensors(types, sum(job.plan.layers_per_stage)))
    for name, tensor in hf_bridge.export_hf_weights(model, cpu=True, show_progress=False):
        progress.beat()
        if files is not None and name not in untrained:  # GLM-4.7-Flash's bridge writes the output layer there, too
            whole = trimmed(name, tensor, job.plan.padded_vocab_size, job.vocab_size)
            files.add(name, converted(whole, asked, types.get(name)))
    if files is not None:
        for name, tensor in tensors_of(source, untrained):
            files.add(name, converted(tensor, asked, types[name]))
        files.close()


def _template(job: Job) -> str | None:
    """The text of --chat_template, as the rows were prepared with it."""
    manifest = read_manifest(Path(job.data_dir))
    return manifest["key"]["settings"]["chat_template"] if manifest else None

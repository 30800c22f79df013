"""The trained Megatron model, or its adapters, to a Hugging Face directory."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.bridge.models.conversion.auto_bridge import AutoBridge

from raymb.bridge.adapters import base_directory, make_adapters
from raymb.bridge.export_adapter import write_adapter
from raymb.bridge.tensor_files import TensorFiles, check_same_tensors, converted, tensor_types, trimmed, type_to_write
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

            source = Path(base_directory(job))
            merge(source, Path(job.adapter_dir), partial, job.spec.checkpoint.export_dtype)
            check_same_tensors(partial, source)
            _write_template(job, partial)
            _say_type(job, partial)
    return [Path(job.adapter_dir), Path(job.hf_dir)]


def _write_model(hf_bridge: AutoBridge, model: list[Any], job: Job, partial: Path) -> None:
    """A tensor at a time: rank 0 holds no more than a file, the others no more than a tensor."""
    files = TensorFiles(partial) if dist.get_rank() == 0 else None
    source = Path(base_directory(job))
    types = tensor_types(source)
    for name, tensor in hf_bridge.export_hf_weights(model, cpu=True, show_progress=False):
        if files is not None:
            whole = trimmed(name, tensor, job.plan["padded_vocab_size"], job.vocab_size)
            files.add(name, converted(whole, job.spec.checkpoint.export_dtype, types.get(name)))
    if files is not None:
        files.close()
        more = getattr(hf_bridge._model_bridge, "ADDITIONAL_FILE_PATTERNS", None) or None
        hf_bridge.hf_pretrained.save_artifacts(partial, additional_files=more)
        check_same_tensors(partial, source)
        _write_template(job, partial)
        _say_type(job, partial)


def _say_type(job: Job, directory: Path) -> None:
    """config.json names the type that the tensors have."""
    asked, file = job.spec.checkpoint.export_dtype, directory / "config.json"
    if asked != "source":
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        config["dtype"] = type_to_write(asked, None)
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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

"""What the trained Megatron model says on held-out rows: what an export is measured by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.utils import get_batch_on_this_cp_rank, get_model_config

from raymb.data.images import ImageProcessor
from raymb.data.samples import samples_in
from raymb.data.store import IMAGES, ImageFile, RowFile
from raymb.model.families import family_of
from raymb.model.shape import read_model_shape
from raymb.run.job import Job

_ROWS, _TOKENS, _NUMBERS = 4, 64, 1 << 24
"""Rows, tokens of a row at most, and logits at most, which are 64 MiB."""
_LONGEST = 4096 + _TOKENS
"""Tokens of the one row that is longer than a window, at most: on a CPU transformers computes it, too."""
_KINDS = "mm_token_type_ids"
"""What transformers' models take besides: 1 where a token is of an image."""


def write_reference(
    model: list[Any], job: Job, file: Path, as_written: contextlib.AbstractContextManager[bool]
) -> None:
    """Write safetensors: ids [rows, tokens], lengths [rows], and of the last positions of each row logits
    [rows, positions, vocabulary] in fp32; if rounding changes the weights also `trained`, the logits without it; of a
    row with images also what a model is called with besides, as NAME.ROW. Collective; rank 0 writes.

    Args:
        model: this rank's chunks, in any layout.
        as_written: in it the weights are those of the files; yields whether that changes any.
    """
    rows, seen = _held_out(job)
    positions = max(1, min(min(map(len, rows)), _NUMBERS // (len(rows) * job.vocab_size)))
    with _without_dropout_or_fp8(model):
        logits = {"logits": _logits(model, job, rows, seen, positions)}
        with as_written as rounded:
            if rounded:
                logits = {"trained": logits["logits"], "logits": _logits(model, job, rows, seen, positions)}
    if dist.get_rank() == 0:
        from safetensors.torch import save_file

        longest = max(map(len, rows))
        ids = torch.tensor([row + [job.pad_id] * (longest - len(row)) for row in rows])
        beside = {f"{name}.{row}": tensor for row, images in enumerate(seen) for name, tensor in images.items()}
        save_file({"ids": ids, "lengths": torch.tensor([len(row) for row in rows]), **logits, **beside}, file)


@contextlib.contextmanager
def _without_dropout_or_fp8(model: list[Any]) -> Iterator[None]:
    """As files are read: they have no FP8 weights. FP8 would want multiples of 8 tokens, too."""
    trains, configs = [chunk.training for chunk in model], [get_model_config(chunk) for chunk in model]
    formats = [config.fp8 for config in configs]
    for chunk, config in zip(model, configs, strict=True):
        chunk.eval()
        config.fp8 = None
    try:
        yield
    finally:
        for chunk, config, training, fp8 in zip(model, configs, trains, formats, strict=True):
            chunk.train(training)
            config.fp8 = fp8


def _held_out(job: Job) -> tuple[list[list[int]], list[dict[str, torch.Tensor]]]:
    """(rows, images of each): the longest of the first samples, cut after their images; of the training rows if none
    are held out."""
    part = "validation" if job.validation_rows else "test" if job.test_rows else "train"
    first = list(islice(samples_in(RowFile(Path(job.data_dir, f"{part}.arrow"))), 100))
    if not family_of(job.architecture).vision:
        rows = sorted((sample.ids[:_TOKENS] for sample in first), key=len, reverse=True)[:_ROWS]
        if (needed := _needed(job)) > _TOKENS:
            rows[0] = [one for sample in first for one in sample.ids][:needed]
        return rows, [{}] * _ROWS
    processor = ImageProcessor(job.architecture, job.model_path)
    chosen = sorted(first, key=lambda sample: (bool(sample.images), len(sample.ids)), reverse=True)[:_ROWS]
    rows, seen = [], []
    for sample in chosen:
        marks = [index for index, one in enumerate(sample.ids) if sample.images and one == processor.mark_id]
        rows.append(sample.ids[: max(marks, default=0) + _TOKENS])
        seen.append(_images(job, processor, sample.images, rows[-1]) if sample.images else {})
    return rows, seen


def _needed(job: Job) -> int:
    """Tokens of a row that shows whether the model's window, or the end of its unstretched positions, is where
    transformers has it, if rows are long enough for that: else _TOKENS."""
    shape = read_model_shape(job.model_path)
    ends = [end for end in (shape.window, shape.rope_limit) if end is not None and end < job.spec.data.seq_length]
    return max([_TOKENS, *(min(end + _TOKENS, job.spec.data.seq_length, _LONGEST) for end in ends)])


def _images(job: Job, processor: ImageProcessor, numbers: list[int], row: list[int]) -> dict[str, torch.Tensor]:
    images = ImageFile(Path(job.data_dir, IMAGES))
    kinds = torch.tensor([[int(one == processor.mark_id) for one in row]], dtype=torch.int)
    return {**processor.pixels([images[number] for number in numbers]), _KINDS: kinds}


def _logits(
    model: list[Any], job: Job, rows: list[list[int]], seen: list[dict[str, torch.Tensor]], positions: int
) -> torch.Tensor:
    """[rows, positions, vocabulary] on every rank of the first copy's pipeline."""
    copy_group: Any = parallel_state.get_context_parallel_group()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    copies = parallel_state.get_context_parallel_world_size()
    length_multiple = parallel_state.get_tensor_model_parallel_world_size() * (2 * copies if copies > 1 else 1)
    length = -(-max(map(len, rows)) // length_multiple) * length_multiple
    # Interleaved stages want a multiple of theirs.
    asked = [index % len(rows) for index in range(-(-len(rows) // stages) * stages)]

    def batches() -> Iterator[dict[str, Any]]:
        for index in asked:
            tokens = torch.tensor([rows[index] + [job.pad_id] * (length - len(rows[index]))], device="cuda")
            places = torch.arange(length, device="cuda")[None]
            yield {"tokens": tokens, "position_ids": places, "cu_seqlens": None, "index": index}

    def forward(iterator: Iterator[dict[str, Any]], chunk: Any) -> Any:
        batch = next(iterator)
        images = {name: tensor.cuda() for name, tensor in seen[batch.pop("index")].items() if name != _KINDS}
        if copies > 1:
            batch = get_batch_on_this_cp_rank(batch, False, copy_group)
        output = chunk(
            input_ids=batch["tokens"],
            position_ids=batch["position_ids"],
            attention_mask=None,
            runtime_gather_output=True,
            **images,
        )
        return output, lambda logits, non_loss_data: (batch["position_ids"][0], logits[0, :, : job.vocab_size])

    with torch.no_grad():
        found = get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[batches() for _ in model] if len(model) > 1 else batches(),
            model=model if len(model) > 1 else model[0],
            num_microbatches=len(asked),
            seq_length=length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    logits = torch.zeros(len(rows), positions, job.vocab_size, device="cuda")
    for row, kept, (places, values) in zip(rows, logits, found or [], strict=False):
        wanted = (places >= len(row) - positions) & (places < len(row))
        kept[places[wanted] - (len(row) - positions)] = values[wanted].float()
    if copies > 1:
        dist.all_reduce(logits, group=copy_group)
    pipeline: Any = parallel_state.get_pipeline_model_parallel_group()
    dist.broadcast(logits, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=pipeline)
    return logits.cpu()

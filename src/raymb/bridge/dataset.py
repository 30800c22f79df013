"""Prepared rows as Bridge's training loop takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider
from megatron.bridge.data.packing import PackedSequenceSpecs

from raymb.bridge.sampling import PADDING
from raymb.data.images import ImageProcessor
from raymb.data.store import IMAGES, ImageFile, RowFile


@dataclass(kw_only=True)
class PreparedRowsConfig(DatasetProvider):
    """The dataset section of a ConfigContainer: a directory that raymb.data.prepare has written.

    Args:
        pad_id: token that fills a row up to its length.
        seed: of the order of the training rows.
        validation_batch, test_batch: rows in a global batch of them; 0 where none are wanted.
        packing: rows hold several samples.
        micro_batch_size: rows that a forward pass takes at once.
        sample_multiple: each packed sample is padded to a multiple of it.
        architecture: of a vision-language model; "" for any other.
        model_path: its directory.

    Attributes:
        enable_offline_packing, enable_in_batch_packing: what Bridge calls packed rows that are taken one by one, and
            several of them laid end to end.
    """

    directory: str
    seq_length: int
    seed: int
    pad_id: int
    validation_batch: int
    test_batch: int
    packing: bool
    micro_batch_size: int
    sample_multiple: int
    architecture: str = ""
    model_path: str = ""
    enable_offline_packing: bool = field(init=False)
    enable_in_batch_packing: bool = field(init=False)
    offline_packing_specs: PackedSequenceSpecs | None = None
    dataloader_type: Any = "batch"

    def __post_init__(self) -> None:
        self.enable_offline_packing = self.packing and self.micro_batch_size == 1
        self.enable_in_batch_packing = self.packing and self.micro_batch_size > 1
        if self.enable_offline_packing:
            self.offline_packing_specs = PackedSequenceSpecs(
                packed_sequence_size=self.seq_length, pad_seq_to_mult=self.sample_multiple
            )

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        return (
            self._rows("train"),
            self._rows("validation", self.validation_batch) if self.validation_batch else None,
            self._rows("test", self.test_batch) if self.test_batch else None,
        )

    def _rows(self, part: str, held_out_batch: int = 0) -> PreparedRows:
        kind = PackedRows if self.packing else ImageRows if self.architecture else PaddedRows
        rows = kind(Path(self.directory, f"{part}.arrow"), self.seq_length, self.pad_id)
        rows.held_out_batch = held_out_batch
        if isinstance(rows, ImageRows):
            rows.processor = ImageProcessor(self.architecture, self.model_path)
        if isinstance(rows, PackedRows):
            rows.micro_batch_size, rows.sample_multiple = self.micro_batch_size, self.sample_multiple
        return rows


class PreparedRows(torch.utils.data.Dataset):
    """
    Attributes:
        held_out_batch: of held-out rows, of which Bridge has one for validation and test; 0 for training rows.
    """

    held_out_batch = 0

    def __init__(self, file: Path, seq_length: int, pad_id: int):
        self.rows = RowFile(file)
        self.seq_length, self.pad_id = seq_length, pad_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """A row as prepared; PADDING is one of which no token is trained."""
        row = self.rows[max(0, int(index))]
        return {**row, "trained": np.zeros_like(row["trained"])} if index == PADDING else row

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a mapped file does not travel to another process; loaders fork")

    def _padded(self, rows: list[np.ndarray], value: int) -> torch.Tensor:
        """[rows, seq_length], int64."""
        batch = np.full((len(rows), self.seq_length), value, dtype=np.int64)
        for line, row in zip(batch, rows, strict=True):
            line[: len(row)] = row
        return torch.from_numpy(batch)


class PaddedRows(PreparedRows):
    """One sample a row."""

    def collate_fn(self, batch: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        """tokens, labels, loss_mask and position_ids, each [rows, seq_length]: the label of an input is the token
        after it."""
        return {
            "tokens": self._padded([row["input_ids"][:-1] for row in batch], self.pad_id),
            "labels": self._padded([row["input_ids"][1:] for row in batch], self.pad_id),
            "loss_mask": self._padded([row["trained"][1:] for row in batch], 0),
            "position_ids": torch.arange(self.seq_length).expand(len(batch), -1).contiguous(),
            "attention_mask": None,  # causal: the attention knows
        }


class ImageRows(PaddedRows):
    """One sample a row, with its images.

    Attributes:
        processor: cuts images into patches.
    """

    processor: ImageProcessor

    def __init__(self, file: Path, seq_length: int, pad_id: int):
        super().__init__(file, seq_length, pad_id)
        images = file.with_name(IMAGES)
        self.images = ImageFile(images) if images.exists() else None

    def collate_fn(self, batch: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        """As PaddedRows, and `images`: of each row its tensors, or None for a row without images."""
        return {**super().collate_fn(batch), "images": [self._pixels(row) for row in batch]}

    def _pixels(self, row: dict[str, np.ndarray]) -> dict[str, torch.Tensor] | None:
        if self.images is None or not len(row["images"]):
            return None
        return self.processor.pixels([self.images[int(number)] for number in row["images"]])


class PackedRows(PreparedRows):
    """Several samples a row, for attention over thd layouts, and the rows of a micro-batch end to end.

    Attributes:
        micro_batch_size: rows of a micro-batch.
        sample_multiple: each sample is padded to a multiple of it.
    """

    micro_batch_size = 1
    sample_multiple = 1

    def collate_fn(self, batch: list[dict[str, np.ndarray]]) -> dict[str, Any]:
        """As PaddedRows, but of a line a micro-batch, each [micro-batches, micro-batch size x seq_length]; and where
        samples begin: cu_seqlens_* [micro-batches, samples + 1] and max_seqlen_* [micro-batches, 1], int32.

        cu_seqlens_*_padded, with samples padded to a multiple, are the places in the line; cu_seqlens_* then count real
        tokens only. What is left of a row is a sample of its own that is not trained. Shorter lists are filled with
        samples of no tokens.
        """
        rows = [self._laid_out(row) for row in batch]
        lines = [rows[begin : begin + self.micro_batch_size] for begin in range(0, len(rows), self.micro_batch_size)]
        places, real = (_boundaries([[row[name] for row in line] for line in lines]) for name in ("ends", "real_ends"))
        longest = (places[:, 1:] - places[:, :-1]).max(dim=1, keepdim=True).values
        boundaries = {"cu_seqlens_q": real, "cu_seqlens_kv": real, "max_seqlen_q": longest, "max_seqlen_kv": longest}
        if self.sample_multiple > 1:
            boundaries |= {"cu_seqlens_q_padded": places, "cu_seqlens_kv_padded": places}
        fillers = {"tokens": self.pad_id, "labels": self.pad_id, "loss_mask": 0, "position_ids": 0}
        padded = {name: self._padded([row[name] for row in rows], filler) for name, filler in fillers.items()}
        joined = {name: tokens.view(len(lines), -1) for name, tokens in padded.items()}
        return {**joined, "attention_mask": None, **boundaries}

    def _laid_out(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One row with its samples padded."""
        stops = np.cumsum(row["lengths"])
        inputs = row["lengths"].astype(np.int64) - 1
        slots = -(-inputs // self.sample_multiple) * self.sample_multiple
        ends = np.concatenate([[0], np.cumsum(slots)])
        length = int(ends[-1])
        tokens, labels = (np.full(length, self.pad_id, dtype=np.int64) for _ in range(2))
        loss_mask, position_ids = (np.zeros(length, dtype=np.int64) for _ in range(2))
        for place, slot, count, stop in zip(ends, slots, inputs, stops, strict=False):
            begin = stop - count - 1
            tokens[place : place + count] = row["input_ids"][begin : stop - 1]
            labels[place : place + count] = row["input_ids"][begin + 1 : stop]
            loss_mask[place : place + count] = row["trained"][begin + 1 : stop]
            position_ids[place : place + slot] = np.arange(slot)
        real_ends = np.concatenate([[0], np.cumsum(inputs)])
        if length < self.seq_length:
            ends = np.append(ends, self.seq_length)
            real_ends = np.append(real_ends, real_ends[-1] if self.sample_multiple > 1 else self.seq_length)
        return {
            "tokens": tokens,
            "labels": labels,
            "loss_mask": loss_mask,
            "position_ids": position_ids,
            "ends": ends,
            "real_ends": real_ends,
        }


def _boundaries(lines: list[list[np.ndarray]]) -> torch.Tensor:
    """[lines, samples + 1], int32: where the samples of each line begin and the last one ends.

    Args:
        lines: of each of its rows where samples end, from a leading 0 on.
    """
    joined = []
    for rows in lines:
        before = np.cumsum([0, *(row[-1] for row in rows)])
        joined.append(np.concatenate([[0], *(row[1:] + begin for row, begin in zip(rows, before, strict=False))]))
    longest = max(map(len, joined))
    filled = [np.pad(ends, (0, longest - len(ends)), mode="edge") for ends in joined]
    return torch.from_numpy(np.stack(filled).astype(np.int32))

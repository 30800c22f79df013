"""Samples of a batch as arrays: cut to their longest length, with digests that equal samples share."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from raymb.data.images import Places
from raymb.data.settings import Settings
from raymb.data.sources import Batch


@dataclass
class Encoded:
    """Samples of one batch, one after the other.

    Args:
        tokens: int32 ids of all samples; trained: uint8, 1 where the token is a target.
        lengths: tokens of each sample.
        hashes: uint64, equal for equal samples; origins: uint64, equal for equal rows of the source.
        numbers: the row number of each sample in its source.
        where: the source, as in Batch.
        eos_id: of the tokenizer; also what rows are padded with.
        problems: (row number, what is wrong) of the rows left out.
        truncated, too_long, untrained: row numbers: cut, left out for their length, left out because nothing to train
            on would be left.
        cut: tokens that each sample has lost at its end.
        empty: problems that are empty answers.
        wordings: rows of texts (prompt and completion, or a document), by how the prompt is worded (Instruction.style).
        size: of the batch.
        images: digests of each sample's images, which lie in the settings' copies.
        dropped: what the chat template leaves out, "the reasoning of {n} messages", and how many times.
        largest: (id, token, row number) of the token with the largest id.
        ends: tokens that end answers, and how many samples each.
    """

    tokens: np.ndarray
    trained: np.ndarray
    lengths: np.ndarray
    hashes: np.ndarray
    origins: np.ndarray
    numbers: np.ndarray
    cut: np.ndarray
    where: str
    eos_id: int
    problems: list[tuple[int, str]] = field(default_factory=list)
    truncated: list[int] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)
    untrained: list[int] = field(default_factory=list)
    empty: int = 0
    wordings: Counter[str] = field(default_factory=Counter)
    size: int = 0
    images: list[tuple[str, ...]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    largest: tuple[int, str, int] | None = None
    ends: Counter[int] = field(default_factory=Counter)

    def find_largest(self, tokenizer: Any) -> None:
        """Set `largest`, if there is a sample."""
        if len(self.tokens):
            place = int(self.tokens.argmax())
            sample = int(np.searchsorted(np.cumsum(self.lengths), place, side="right"))
            token = int(self.tokens[place])
            self.largest = token, str(tokenizer.convert_ids_to_tokens(token)), int(self.numbers[sample])


@dataclass(frozen=True)
class EncodedSample:
    """One row's tokens.

    Args:
        number: of the row in its source.
        ids, trained: its tokens, and 1 where one is a target.
        images: digests of its images; places: where they are among the tokens.
    """

    number: int
    ids: list[int]
    trained: list[int]
    images: tuple[str, ...] = ()
    places: Places | None = None

    def end(self, special: Set[int], blank: Set[int]) -> int | None:
        """The special token that ends its last answer: the first after the answer's words."""
        found = None
        for token, is_target in zip(reversed(self.ids), reversed(self.trained), strict=True):
            if not is_target or not (token in special or token in blank):
                break
            found = token if token in special else found
        return found

    def cut(self, length: int) -> EncodedSample:
        """To a length, or to the beginning of an image that would be cut."""
        length, images = (length, 0) if self.places is None else self.places.kept(length)
        return EncodedSample(self.number, self.ids[:length], self.trained[:length], self.images[:images])


def collected(
    samples: list[EncodedSample], batch: Batch, problems: list[tuple[int, str]], settings: Settings, eos_id: int
) -> Encoded:
    """Samples cut to their longest length, one after the other.

    Args:
        problems: of the batch so far; samples without a target join them.
        eos_id: of the tokenizer.
    """
    kept, cut = [], []
    truncated, too_long, untrained = [], [], []
    for sample in samples:
        if not any(sample.trained[1:]):
            problems.append((sample.number, "no token of it is trained"))
            continue
        whole = len(sample.ids)
        if whole > settings.max_tokens:
            if settings.long_rows != "truncate":
                too_long.append(sample.number)
                continue
            sample = sample.cut(settings.max_tokens)
            if not any(sample.trained[1:]):
                untrained.append(sample.number)
                continue
            truncated.append(sample.number)
        kept.append(sample)
        cut.append(whole - len(sample.ids))
    tokens = _flat([sample.ids for sample in kept], np.int32)
    trained = _flat([sample.trained for sample in kept], np.uint8)
    lengths = np.array([len(sample.ids) for sample in kept], dtype=np.int32)
    images = [sample.images for sample in kept]
    return Encoded(
        tokens=tokens,
        trained=trained,
        lengths=lengths,
        hashes=_hashes(tokens, trained, lengths, images),
        origins=_origins(batch, [sample.number for sample in kept]),
        images=images if any(images) else [],
        numbers=np.array([sample.number for sample in kept], dtype=np.int64),
        cut=np.array(cut, dtype=np.int32),
        where=batch.where,
        eos_id=eos_id,
        problems=problems,
        truncated=truncated,
        too_long=too_long,
        untrained=untrained,
        size=batch.size,
    )


def _flat(lists: list[list[int]], kind: Any) -> np.ndarray:
    return np.fromiter(chain.from_iterable(lists), dtype=kind, count=sum(map(len, lists)))


def _hashes(tokens: np.ndarray, trained: np.ndarray, lengths: np.ndarray, images: list[tuple[str, ...]]) -> np.ndarray:
    ends = np.cumsum(lengths)
    digests = [
        hashlib.blake2b(
            tokens[end - length : end].tobytes() + trained[end - length : end].tobytes() + "".join(seen).encode(),
            digest_size=8,
        )
        for end, length, seen in zip(ends, lengths, images, strict=True)
    ]
    return np.frombuffer(b"".join(digest.digest() for digest in digests), dtype=np.uint64)


def _origins(batch: Batch, numbers: list[int]) -> np.ndarray:
    """Digests of the rows as the source has them: a line of JSON, or what a row of another format holds."""
    rows = (batch.rows[number - batch.numbers.start] for number in numbers)
    texts = (row.strip() if isinstance(row, bytes) else json.dumps(row, default=repr).encode() for row in rows)
    return np.frombuffer(b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts), dtype=np.uint64)

"""Which samples are trained on and which are held out, by shares, weights and seed.

Each row is held out or not by itself, by a number drawn from the row as its file has it and the seed. So nothing else
moves a row from one part to another: not the other rows, not how rows are read, cut or weighted.
"""

from __future__ import annotations

import hashlib

import numpy as np

from raymb.data.locate import PARTS, Located
from raymb.data.mixing import mixed
from raymb.data.pool import Pool, rows_are
from raymb.spec import RunSpec


def split(
    spec: RunSpec, located: list[Located], owners: np.ndarray, parts: np.ndarray, origins: np.ndarray
) -> dict[str, np.ndarray]:
    """Sample indices by part, in the order of the sources.

    Args:
        located: the data sets.
        owners: which of them each sample is of; parts: which of PARTS its source is of.
        origins: uint64 digest of the row that each sample was made from.
    """
    shares = {
        "validation": 0.0 if spec.data.validation_dataset else spec.data.validation_split,
        "test": 0.0 if spec.data.test_dataset else spec.data.test_split,
    }
    drawn = draws(origins, spec.data_seed)
    chosen = {part: np.flatnonzero(parts == index) for index, part in enumerate(PARTS)}
    rest = []
    for owner, one in enumerate(located):
        rows = np.flatnonzero((owners == owner) & (parts == 0))
        wanted = {part: 0.0 if part in one.parts else share for part, share in shares.items()}
        held_out = _held_out(drawn[rows], wanted)
        for part, mask in held_out.items():
            chosen[part] = np.concatenate([chosen[part], rows[mask]])
        rest.append(rows[~np.any(list(held_out.values()), axis=0)])
    chosen["validation"] = _limited(chosen["validation"], drawn, spec.evaluation.max_validation_samples)
    trained = [owner for owner, one in enumerate(located) if "train" in one.parts]
    names, weights = [located[owner].word for owner in trained], [located[owner].weight for owner in trained]
    random = np.random.default_rng(spec.data_seed)
    return {**chosen, "train": np.concatenate(mixed(names, weights, [rest[owner] for owner in trained], random))}


def draws(origins: np.ndarray, seed: int) -> np.ndarray:
    """A number from 0 to 1 for each digest, and another one for each seed: the finalizer of splitmix64."""
    bits = origins ^ np.frombuffer(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return (bits ^ (bits >> np.uint64(31))) / 2.0**64


def _held_out(drawn: np.ndarray, shares: dict[str, float]) -> dict[str, np.ndarray]:
    """Masks of one data set's rows, by part. A part that is asked for has at least a row, if another one is left to
    train on.

    Args:
        drawn: a number from 0 to 1 of each row.
    """
    masks, free, begin = {}, np.full(len(drawn), True), 0.0
    for part, share in shares.items():
        mask = free & (begin <= drawn) & (drawn < begin + share)
        begin += share
        left = np.unique(drawn[free & ~mask])  # equal rows, and the pieces of a document, stay together
        if mask.any() and not len(left):
            mask &= drawn < drawn[mask].max()
        elif share and not mask.any() and len(left) > 1:
            mask = free & (drawn == left[0])
        free &= ~mask
        masks[part] = mask
    return masks


def _limited(rows: np.ndarray, drawn: np.ndarray, most: int | None) -> np.ndarray:
    """At most so many of them, those with the lowest numbers, in their order."""
    return np.sort(rows[np.argsort(drawn[rows], kind="stable")[:most]])


def used(chosen: dict[str, np.ndarray], owners: np.ndarray, owner: int) -> int:
    """How many samples of a data set are in any part."""
    return sum(int((owners[wanted] == owner).sum()) for wanted in chosen.values())


def leaks(chosen: dict[str, np.ndarray], pool: Pool) -> list[str]:
    """Held-out samples that are trained on as well."""
    hashes, notes = pool.hashes, []
    for part in PARTS[1:]:
        seen = np.isin(hashes[chosen[part]], hashes[chosen["train"]])
        if seen.any():
            first = pool.row(int(chosen[part][np.argmax(seen)]))
            notes.append(f"{rows_are(int(seen.sum()))} both in {part} and in training (the first: {first})")
    return notes

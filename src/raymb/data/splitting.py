"""Which samples are trained on and which are held out, by shares, weights and seed."""

from __future__ import annotations

import numpy as np

from raymb.data.locate import PARTS, Located
from raymb.data.mixing import mixed
from raymb.data.pool import Pool, rows_are
from raymb.spec import RunSpec


def split(spec: RunSpec, located: list[Located], owners: np.ndarray, parts: np.ndarray) -> dict[str, np.ndarray]:
    """Sample indices by part, in the order of the sources. The same rows, shares and seed give the same split."""
    shares = {
        "validation": 0.0 if spec.data.validation_dataset else spec.data.validation_split,
        "test": 0.0 if spec.data.test_dataset else spec.data.test_split,
    }
    random = np.random.default_rng(spec.data_seed)
    mine = [np.flatnonzero((owners == owner) & (parts == 0)) for owner in range(len(located))]
    chosen = {part: np.flatnonzero(parts == index) for index, part in enumerate(PARTS)}
    rest = []
    for one, rows in zip(located, mine, strict=True):
        total = len(rows)
        for part, share in shares.items():
            if share > 0 and part not in one.parts and len(rows) > 1:
                count = min(max(1, round(total * share)), len(rows) - 1)
                held_out = np.sort(random.choice(len(rows), count, replace=False))
                chosen[part] = np.concatenate([chosen[part], rows[held_out]])
                rows = np.delete(rows, held_out)
        rest.append(rows)
    trained = [owner for owner, one in enumerate(located) if "train" in one.parts]
    names, weights = [located[owner].word for owner in trained], [located[owner].weight for owner in trained]
    return {**chosen, "train": np.concatenate(mixed(names, weights, [rest[owner] for owner in trained], random))}


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

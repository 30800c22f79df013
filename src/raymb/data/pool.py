"""Everything that was tokenized, before it is split: tokens on disk, numbers in memory, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raymb.data.encoded import Encoded
from raymb.data.shapes import ROW_RULE
from raymb.data.store import Samples
from raymb.errors import DataError
from raymb.spec import RunSpec
from raymb.spec.sections import Data

_SHOWN = 5  # a file with one mistake in every line must not fill the screen


_NOTABLE = 0.01
"""Share of the samples from which on a token counts as an end of answers."""


class Pool:
    """Everything that was tokenized, in the order it came; the tokens on disk."""

    def __init__(self, directory: Path):
        self.files = [directory / "tokens.tmp", directory / "trained.tmp"]
        self.streams = [open(file, "wb") for file in self.files]  # noqa: SIM115
        self.batches: list[Encoded] = []
        self.codes: list[tuple[int, int]] = []
        self.problems: list[str] = []
        self.wrong = 0
        self.largest_token: dict[str, Any] = {"id": -1}  # with the token and a row that has it

    def add(self, encoded: Encoded, owner: int, part: int) -> None:
        for stream, array in zip(self.streams, (encoded.tokens, encoded.trained), strict=True):
            array.tofile(stream)
        self.wrong += len(encoded.problems)
        room = _SHOWN - len(self.problems)
        self.problems += [f"{encoded.where} {number}: {text}" for number, text in encoded.problems[: max(0, room)]]
        if encoded.largest is not None and encoded.largest[0] > self.largest_token["id"]:
            number, token, row = encoded.largest
            self.largest_token = {"id": number, "token": token, "row": f"{encoded.where} {row}"}
        encoded.tokens = encoded.trained = np.empty(0)
        self.batches.append(encoded)
        self.codes.append((owner, part))

    def samples(self) -> Samples:
        for stream in self.streams:
            stream.close()
        tokens, trained = (
            np.memmap(file, dtype=kind, mode="r") for file, kind in zip(self.files, (np.int32, np.uint8), strict=True)
        )
        lengths = np.concatenate([batch.lengths for batch in self.batches])
        return Samples(tokens, trained, lengths, self.images())

    def images(self) -> list[tuple[str, ...]]:
        """Digests of each sample's images; empty where no sample has one."""
        if not any(batch.images for batch in self.batches):
            return []
        return [images for batch in self.batches for images in batch.images or [()] * len(batch.lengths)]

    def _of_samples(self, which: int) -> np.ndarray:
        return np.concatenate(
            [np.full(len(batch.lengths), code[which]) for batch, code in zip(self.batches, self.codes, strict=True)]
        )

    @cached_property
    def owners(self) -> np.ndarray:
        return self._of_samples(0)

    @cached_property
    def parts(self) -> np.ndarray:
        return self._of_samples(1)

    @cached_property
    def hashes(self) -> np.ndarray:
        return np.concatenate([batch.hashes for batch in self.batches])

    @cached_property
    def origins(self) -> np.ndarray:
        return np.concatenate([batch.origins for batch in self.batches])

    @cached_property
    def wordings(self) -> Counter[str]:
        """Rows of texts, which are prompted without a chat template, by how the prompt is worded."""
        return sum((batch.wordings for batch in self.batches), Counter())

    def row(self, index: int) -> str:
        """Where a sample came from, in words."""
        for batch in self.batches:
            if index < len(batch.lengths):
                return f"{batch.where} {batch.numbers[index]}"
            index -= len(batch.lengths)
        raise IndexError(index)

    def _rows_of(self, kind: str) -> tuple[int, str]:
        """(how many, the first) of `truncated`, `too_long` or `untrained` rows."""
        count = sum(len(getattr(batch, kind)) for batch in self.batches)
        first = next(
            (f"{batch.where} {min(getattr(batch, kind))}" for batch in self.batches if getattr(batch, kind)), ""
        )
        return count, first

    @cached_property
    def cut(self) -> np.ndarray:
        """Tokens that each sample has lost."""
        return np.concatenate([batch.cut for batch in self.batches])

    def losses(self, part: int, wanted: np.ndarray) -> dict[str, int]:
        """What a part has lost. A row without a sample counts where its source does.

        Args:
            wanted: the part's samples.
        """
        cut = self.cut[wanted]
        batches = [batch for batch, (_, of) in zip(self.batches, self.codes, strict=True) if of == part]
        dropped = [len(batch.too_long) + len(batch.untrained) + len(batch.problems) for batch in batches]
        return {
            "truncated_rows": int((cut > 0).sum()),
            "truncated_tokens": int(cut.sum()),
            "dropped_rows": sum(dropped),
            "empty_answers": sum(batch.empty for batch in batches),
        }

    def check(self, spec: RunSpec) -> None:
        """The rules that need all rows."""
        words = ", ".join(spec.data.named)
        if self.wrong and spec.data.bad_rows == "fail":
            raise _wrong_rows(self.problems, self.wrong, words)
        count, first = self._rows_of("too_long")
        if count and spec.data.long_rows == "fail":
            raise DataError(
                f"{rows_are(count)} longer than --seq_length {spec.data.seq_length} (the first: {first})",
                "raise --seq_length, or --long_rows truncate to cut them, or --long_rows drop to leave them out",
            )
        if not any(len(batch.lengths) for batch, (_, part) in zip(self.batches, self.codes, strict=True) if part == 0):
            cut, first = self._rows_of("untrained")
            why = f"cut to --seq_length {spec.data.seq_length}, no row has a trained token left (the first: {first})"
            raise DataError(f"--dataset {words}: {why if cut else 'no rows to train on'}", ROW_RULE)

    def notes(self, spec: RunSpec) -> list[str]:
        length = spec.data.seq_length
        sentences = {
            "truncated": f"cut to --seq_length {length}",
            "too_long": f"longer than --seq_length {length} and left out (--long_rows drop)",
            "untrained": f"left out: cut to --seq_length {length}, no trained token is left",
        }
        found = [(text, *self._rows_of(kind)) for kind, text in sentences.items()]
        notes = [f"{rows_are(count)} {text} (the first: {first})" for text, count, first in found if count]
        if self.wrong:
            notes.append(f"{rows_are(self.wrong)} wrong and left out (--bad_rows drop); the first: {self.problems[0]}")
        return notes + self._no_conversations(spec.data) + self._dropped()

    def _no_conversations(self, data: Data) -> list[str]:
        """Flags about conversations, where rows are texts."""
        flags = ("chat_template", "chat_template_kwargs", "system_prompt", "keep_reasoning", "train_on_roles")
        given = [
            f"--{flag}"
            for flag in flags
            if getattr(data, flag) != Data.model_fields[flag].get_default(call_default_factory=True)
        ]
        count = self.wordings.total()
        if not count or not given:
            return []
        verb = "does" if len(given) == 1 else "do"
        return [f"{rows_are(count)} plain texts, for which {' and '.join(given)} {verb} nothing"]

    def _dropped(self) -> list[str]:
        """What the chat template leaves out of conversations."""
        counts = sum((batch.dropped for batch in self.batches), Counter())
        left_out = [text.replace("{n}", f"{count:,}") for text, count in sorted(counts.items())]
        return [f"the chat template leaves out {text}" for text in left_out]

    def stop_tokens(self) -> list[int]:
        """Tokens that end answers; not one that hardly any sample ends with."""
        ends = sum((batch.ends for batch in self.batches), Counter())
        return sorted(token for token, count in ends.items() if count >= _NOTABLE * ends.total())

    def remove(self) -> None:
        for file in self.files:
            file.unlink()


def check_problems(pool: Pool, bad_rows: str) -> None:
    """There is no use in reading a billion rows of the wrong kind."""
    if bad_rows == "fail" and pool.wrong > 1000:
        raise _wrong_rows(pool.problems, pool.wrong, pool.batches[-1].where.rpartition(" ")[0], more="at least ")


def _wrong_rows(problems: list[str], count: int, words: str, more: str = "") -> DataError:
    lines = [f"  {text}" for text in problems]
    if count > len(problems):
        lines.append(f"  ... and {count - len(problems):,} more")
    return DataError(
        f"--dataset {words}: {more}{rows_are(count)} wrong\n" + "\n".join(lines),
        f"{ROW_RULE}; --bad_rows drop leaves them out",
    )


def rows_are(count: int) -> str:
    return "1 row is" if count == 1 else f"{count:,} rows are"

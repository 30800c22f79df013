"""The words of --dataset: NAME, NAME#ROWS, NAME:WEIGHT, NAME#ROWS:WEIGHT."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from raymb.errors import DataError

_WORD = re.compile(r"(?P<name>.+?)(?:#(?P<rows>\d+))?(?::(?P<weight>\d+(?:\.\d*)?|\.\d+))?")


@dataclass(frozen=True)
class Word:
    """
    Args:
        name: what the rows are found by.
        rows: how many to use, the first ones; None for all.
        weight: its part in the mix; None if none was given.
    """

    name: str
    rows: int | None = None
    weight: float | None = None


def read_word(text: str) -> Word:
    """A file that is called like the whole text is meant by it.

    Raises:
        DataError: no rows are asked for.
    """
    match = _WORD.fullmatch(text)
    if match is None or Path(text).exists():
        return Word(text)
    rows, weight = match["rows"], match["weight"]
    read = Word(match["name"], None if rows is None else int(rows), None if weight is None else float(weight))
    if read.weight == 0:
        raise DataError(f"--dataset {text}: a weight must be greater than 0", "leave a data set out that is not wanted")
    if read.rows == 0:
        raise DataError(f"--dataset {text}: #0 asks for no rows", "leave a data set out that is not wanted")
    return read

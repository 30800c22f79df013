"""Which samples share a row: lengths mixed at random, and each row ended with samples that fill it exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK = 1 << 20  # samples packed at once: bounds memory, and costs about a row a block
_FEW = 64  # lengths: of fewer a mixture may leave more room than the longest first
_TRIES = 8  # lengths drawn in search of one that suits, before all are looked at


def mixed_rows(lengths: np.ndarray, capacity: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack samples. A row begins with the longest that is left, because long ones are the hardest to place, goes on
    with samples drawn at random, and ends with one or two that leave no room, or else with what fits best.

    Args:
        lengths: tokens of each sample, 1 to capacity.
        capacity: tokens of a row.
        seed: equal seeds give equal rows.

    Returns:
        (indices of the samples, row after row; samples in each row).
    """
    if not len(lengths):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    random = np.random.default_rng(seed)
    blocks = np.array_split(random.permutation(len(lengths)), -(-len(lengths) // _BLOCK))
    packed = [_packed(block, lengths[block], capacity, random) for block in blocks]
    order, counts = (np.concatenate(parts) for parts in zip(*packed, strict=True))
    return order, counts


def _packed(
    indices: np.ndarray, lengths: np.ndarray, capacity: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one block. Samples of one length are alike until rows are made, and then dealt out."""
    rows = _Rows(lengths, capacity, random)
    few = rows.kinds <= _FEW
    rows.fill()
    if few:
        rows = min(rows, _Rows(lengths, capacity, random).fill(mixed=False), key=lambda rows: len(rows.counts))
    order = np.empty_like(indices)
    order[np.argsort(np.array(rows.taken), kind="stable")] = indices[np.argsort(lengths, kind="stable")]
    return order, np.array(rows.counts)


class _Rows:
    """The samples that are left, by length, and the rows so far.

    Attributes:
        taken: lengths, row after row; counts: samples in each row.
        left: samples that no row has yet.
    """

    def __init__(self, lengths: np.ndarray, capacity: int, random: np.random.Generator):
        self.capacity, self.random = capacity, random
        self.of: list[int] = np.bincount(lengths, minlength=capacity + 1).tolist()
        self.left, self.longest = len(lengths), int(lengths.max())
        self.near = 2 * int(lengths.mean())  # room that one or two samples can fill
        self.taken: list[int] = []
        self.counts: list[int] = []
        self.drawn = self._drawn()
        self._look_ahead()

    def fill(self, mixed: bool = True) -> _Rows:
        """Make all rows; without mixed ones each sample in turn is the longest that fits."""
        while self.left:
            before = len(self.taken)
            while not self.of[self.longest]:
                self.longest -= 1
            room = self._take(self.longest, self.capacity)
            if mixed:
                self._mix(room)
            else:
                while length := self._best_fit(room):
                    room = self._take(length, room)
            self.counts.append(len(self.taken) - before)
        return self

    def _mix(self, room: int) -> None:
        """Go on with the row until nothing fits."""
        misses = 0
        while room > self.near and self.left and misses < _TRIES:
            length = next(self.drawn)
            if length <= room and self.lost[room - length] <= self.lost[room]:
                room = self._take(length, room)
            else:
                misses += 1
        while room and (lengths := self._last(room)):
            for length in lengths:
                room = self._take(length, room)
        if self.exhausted > self.kinds // 8:
            self._look_ahead()

    def _take(self, length: int, room: int) -> int:
        """Put a sample into the row; the room after it."""
        self.taken.append(length)
        self.left -= 1
        self.of[length] -= 1
        if not self.of[length]:
            self.exhausted += 1
            self.there ^= 1 << length
            self.mirrored ^= 1 << (self.capacity - length)
        return room - length

    def _last(self, room: int) -> tuple[int, ...]:
        """One or two lengths that fill the room exactly; else one after which it can still be filled well; else the
        longest that fits; none if nothing does."""
        of, lost, suits = self.of, self.lost, 0
        if of[room]:
            return (room,)
        for _ in range(min(_TRIES, self.left)):
            length = next(self.drawn)
            rest = room - length
            if rest > 0:
                if of[rest] > (rest == length):
                    return length, rest
                if not suits and lost[rest] <= lost[room]:
                    suits = length
        if pairs := self.there & (self.mirrored >> (self.capacity - room)):
            length = pairs.bit_length() - 1
            if length != room - length or of[length] > 1:
                return length, room - length
        length = suits or self._best_fit(room)
        return (length,) if length else ()

    def _best_fit(self, room: int) -> int:
        """The longest that is left and fits; 0 for none."""
        return max(0, (self.there & ((2 << room) - 1)).bit_length() - 1)

    def _drawn(self) -> Iterator[int]:
        """Lengths of samples that are left, at random, without end while there are any."""
        while self.left:
            for length in self.random.permutation(np.repeat(np.arange(self.capacity + 1), self.of)).tolist():
                if self.of[length]:
                    yield length

    def _look_ahead(self) -> None:
        """Take stock of the lengths that are left.

        there: bit n is set if there is a sample of n tokens; mirrored: bit capacity - n.
        kinds: how many lengths; exhausted: how many of them have run out since.
        lost: of each room what no choice of these lengths can fill, were there enough samples of each.
        """
        lengths = np.flatnonzero(self.of).tolist()
        self.exhausted, self.kinds = 0, len(lengths)
        self.there = sum(1 << length for length in lengths)
        self.mirrored = sum(1 << (self.capacity - length) for length in lengths)
        sums, within = 1, (2 << self.capacity) - 1
        for length in lengths:
            if sums >> length & 1:
                continue  # others add up to it
            step = length
            while step <= self.capacity:
                sums |= sums << step & within
                step *= 2
        bits = np.frombuffer(sums.to_bytes(self.capacity // 8 + 1, "little"), dtype=np.uint8)
        reached = np.unpackbits(bits, bitorder="little")[: self.capacity + 1].astype(bool)
        rooms = np.arange(self.capacity + 1)
        self.lost: list[int] = (rooms - np.maximum.accumulate(np.where(reached, rooms, 0))).tolist()

"""What changes the weights of a shared-seed run: groups of (seed, integer coefficient).

Every method (`just_one_byte`, `fedkseed`, `ferret`) ends in such groups, a log holds them, and weights
are the base plus all of them, in any order: a newcomer, an auditor and somebody who applies a log
years later run the same sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

UNIT_SHIFT = 28
"""Units of a log are 2^-28, whatever a tensor's own shift is."""

ALL_TENSORS = -1

Words = npt.NDArray[np.uint32]
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeedUpdate:
    """Some directions of one step, and how far the weights go along each: ``-unit * code`` times 2^-28.

    Attributes:
        step: its place in the run's history, from 0; several groups may share one.
        counter: the direction's word c2; the step itself, or what a pool of seeds has there.
        unit: integer, 0 to 2^31 - 1.
        slots: the directions' words c3, uint32 [k].
        codes: int32 [k].
        tensor: the id of the one tensor that it changes, or `ALL_TENSORS`.
    """

    step: int
    counter: int
    unit: int
    slots: Words
    codes: Codes
    tensor: int = ALL_TENSORS

    def __post_init__(self) -> None:
        words = (self.step, self.counter)
        if any(not 0 <= word < 1 << 32 for word in words) or not 0 <= self.unit < 1 << 31:
            raise ValueError(f"step, counter {words}, unit {self.unit}: out of range")
        if not ALL_TENSORS <= self.tensor < 1 << 31:
            raise ValueError(f"tensor {self.tensor}, expected an id, or {ALL_TENSORS} for all")
        if self.slots.dtype != np.uint32 or self.codes.dtype != np.int32:
            raise ValueError(f"slots {self.slots.dtype}, codes {self.codes.dtype}")
        if self.codes.size and self.codes.min() == np.iinfo(np.int32).min:
            raise ValueError("a code of -2^31, which has no negative")
        if self.slots.ndim != 1 or self.slots.shape != self.codes.shape:
            raise ValueError(f"slots {self.slots.shape}, codes {self.codes.shape}")

    @classmethod
    def nothing(cls, step: int) -> SeedUpdate:
        """A step that changes nothing, and counts."""
        slots, codes = np.zeros(0, np.uint32), np.zeros(0, np.int32)
        return cls(step=step, counter=step, unit=0, slots=slots, codes=codes)

    def __len__(self) -> int:
        return self.slots.size

    def undone(self) -> SeedUpdate:
        """The update that takes this one back, exactly."""
        return replace(self, codes=-self.codes)


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Many updates as columns.

    Attributes:
        counters: uint32 [K].
        slots: uint32 [K].
        coefficients: int64 [K], in units of 2^-28.
        tensors: int32 [K], ids or `ALL_TENSORS`.
    """

    counters: Words
    slots: Words
    coefficients: npt.NDArray[np.int64]
    tensors: npt.NDArray[np.int32]

    @classmethod
    def of(cls, updates: Iterable[SeedUpdate]) -> Entries:
        """The columns of all updates, one after the other."""
        groups = list(updates)
        sizes = [len(group) for group in groups]

        units = np.repeat(np.array([group.unit for group in groups], np.int64), sizes)
        codes = np.concatenate([np.zeros(0, np.int32), *(group.codes for group in groups)])
        return cls(
            counters=np.repeat(np.array([group.counter for group in groups], np.uint32), sizes),
            slots=np.concatenate([np.zeros(0, np.uint32), *(group.slots for group in groups)]),
            coefficients=-units * codes,
            tensors=np.repeat(np.array([group.tensor for group in groups], np.int32), sizes),
        )

    @classmethod
    def joined(cls, parts: Sequence[Entries]) -> Entries:
        """The columns of all parts, one after the other."""
        return cls(
            counters=np.concatenate([part.counters for part in parts]),
            slots=np.concatenate([part.slots for part in parts]),
            coefficients=np.concatenate([part.coefficients for part in parts]),
            tensors=np.concatenate([part.tensors for part in parts]),
        )

    def __len__(self) -> int:
        return self.counters.size

    def pieces(self, sizes: Sequence[int], most: int, least: int) -> list[tuple[Entries, int]]:
        """In pieces of about `most` sums of a weight and a direction, but of `least` entries at least; and their sums.

        Args:
            sizes: weights of each tensor, by its id.
        """
        weights = np.array([*sizes, sum(sizes)], np.int64)
        sums = np.cumsum(weights[self.tensors])  # -1 is all of them
        pieces, start = list[tuple[Entries, int]](), 0
        while start < len(self):
            done = int(sums[start - 1]) if start else 0
            stop = int(np.searchsorted(sums, done + most, side="right"))
            here = slice(start, min(len(self), max(stop, start + least)))
            piece = Entries(
                self.counters[here], self.slots[here], self.coefficients[here], self.tensors[here]
            )
            pieces.append((piece, int(sums[here.stop - 1]) - done))
            start = here.stop
        return pieces

    def without_opposites(self) -> Entries:
        """The same sum, whatever a tensor's unit, without pairs of one direction that undo each other.

        A pool of seeds takes back what its directions had and puts what they have now: of many rounds
        only the first and the last are left. What is left is in the order of the tensors.
        """
        sizes, signs = np.abs(self.coefficients), np.sign(self.coefficients)
        columns = (sizes, self.slots, self.counters, self.tensors)
        order = np.lexsort(columns)
        sorted_columns = np.stack([column[order].astype(np.int64) for column in columns])
        changes = np.any(sorted_columns[:, 1:] != sorted_columns[:, :-1], axis=0)
        starts = np.flatnonzero(np.concatenate([[True], changes]))[: order.size]
        if not starts.size:
            return self
        sums = np.add.reduceat(signs[order], starts)
        left = np.repeat(order[starts], np.abs(sums))
        coefficients = np.repeat(sizes[order[starts]] * np.sign(sums), np.abs(sums))
        return Entries(self.counters[left], self.slots[left], coefficients, self.tensors[left])

    def of_tensor(self, tensor: int, shift: int) -> tuple[Codes, Words, Words]:
        """Coefficients in units of 2^-shift modulo 2^32, counters and slots for one tensor.

        A coarser unit rounds each coefficient by itself, to even, so that order does not matter.
        """
        here = (self.tensors == tensor) | (self.tensors == ALL_TENSORS)
        rounded = round_shift(self.coefficients[here], UNIT_SHIFT - shift)
        wrapped = rounded.astype(np.uint32).view(np.int32)
        return wrapped, self.counters[here], self.slots[here]


def round_shift(values: npt.NDArray[np.int64], bits: int) -> npt.NDArray[np.int64]:
    """``values / 2^bits`` rounded to nearest even, in integers; `bits` from 0 to 60."""
    if bits == 0:
        return values
    floor = values >> np.int64(bits)
    rest = values - (floor << np.int64(bits))
    half = np.int64(1) << np.int64(bits - 1)
    up = (rest > half) | ((rest == half) & ((floor & np.int64(1)) == 1))
    rounded: npt.NDArray[np.int64] = floor + up
    return rounded

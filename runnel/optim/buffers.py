"""Large arrays that are used again.

A fresh array of a model's size costs as much as the arithmetic on it: the system hands over its
memory page by page, cleared, and takes it back as soon as the array is gone.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL_BYTES = 1 << 16
"""Smaller arrays are cheaper to make than to find again."""

_ALIGNED_BYTES = 64

_HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux


class BufferPool:
    """Gives out arrays, and their memory again once nobody holds it any more; for any thread.

    There is nothing to give back: an array's memory counts as held as long as the array, a view or
    slice of it, a memoryview or a tensor over it lives.
    """

    def __init__(self, dtype: npt.DTypeLike, *, max_spare_bytes: int) -> None:
        """`max_spare_bytes`: how much memory nobody uses may wait here; more goes back to the system."""
        self._dtype, self._max_spare_bytes = np.dtype(dtype), max_spare_bytes
        self._spare: deque[mmap.mmap] = deque()  # appended to wherever an array ends

    def take(self, numel: int) -> np.ndarray[Any, Any]:
        """An array of `numel` values, whatever they are."""
        if numel * self._dtype.itemsize < _SMALL_BYTES:
            return np.empty(numel, dtype=self._dtype)
        size_bytes = -(-numel * self._dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = self._find(size_bytes) or _fresh(size_bytes)
        # numpy keeps an array over foreign memory alive for each view of it: the array's end is theirs
        array = np.frombuffer(memory, dtype=self._dtype, count=numel)
        weakref.finalize(array, self._spare.append, memory).atexit = False
        return array

    def take_room(self, size_bytes: int) -> memoryview:
        """As `take`, in bytes."""
        if not size_bytes:
            return memoryview(bytearray())
        count = -(-size_bytes // self._dtype.itemsize)
        return memoryview(self.take(count).data).cast("B")[:size_bytes]

    def take_rooms(self, sizes_bytes: Sequence[int]) -> list[memoryview]:
        """As `take_room`, for each of these sizes."""
        ends = list(accumulate(-(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES for size in sizes_bytes))
        memory = self.take_room(ends[-1])
        return [
            memory[start : start + size]
            for start, size in zip([0, *ends[:-1]], sizes_bytes, strict=True)
        ]

    @property
    def spare_bytes(self) -> int:
        """Memory that waits to be used again."""
        return sum(len(memory) for memory in self._spare.copy())

    def _find(self, size_bytes: int) -> mmap.mmap | None:
        """Takes memory out of what waits; only steps that are atomic, as any thread may be at it, too."""
        found: mmap.mmap | None = None
        excess = self.spare_bytes - self._max_spare_bytes
        for _ in range(len(self._spare)):
            try:
                memory = self._spare.popleft()
            except IndexError:
                break
            if found is None and len(memory) == size_bytes:
                found = memory
            elif excess > 0:
                excess -= len(memory)  # goes back to the system
            else:
                self._spare.append(memory)
        return found


def _fresh(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes)
    advise = getattr(memory, "madvise", None)  # not on Windows
    if advise is not None and _HUGE_PAGES is not None:
        advise(_HUGE_PAGES)
    return memory

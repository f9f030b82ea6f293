"""Arrays that are used again.

A fresh array of a model's size costs more than the arithmetic on it: the system hands over its
memory page by page, cleared, and takes it back as soon as the array is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class BufferPool:
    """Gives out arrays, and gives one out again once nobody holds it.

    There is nothing to give back: views of an array count as references to it, and so do
    memoryviews and tensors. So the pool holds as many arrays as were ever in use at once. For one
    thread; what it gave out may be let go of in any.
    """

    def __init__(self, dtype: npt.DTypeLike, numel: int) -> None:
        """`numel`: the size of each array, in values; longer ones are made when asked for."""
        self._dtype, self._numel = np.dtype(dtype), numel
        self._held: list[np.ndarray[Any, Any]] = []

    def take(self, numel: int) -> np.ndarray[Any, Any]:
        """An array of `numel` values, whatever they are."""
        if numel > self._numel:
            self._numel = numel
            self._held.clear()  # those in use stay with their users
        for place, count in enumerate(_references(self._held)):
            if count == _UNUSED:
                return self._held[place][:numel]
        self._held.append(np.empty(self._numel, dtype=self._dtype))
        return self._held[-1][:numel]

    def copy_of(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A copy of an array."""
        copy = self.take(values.size)
        copy[:] = values
        return copy


def _references(objects: Sequence[object]) -> list[int]:
    return [sys.getrefcount(held) for held in objects]


_UNUSED = _references([object()])[0]
"""References to an object that only one list holds; how many are counted depends on the Python."""
